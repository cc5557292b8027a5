"""Who may call the Flight service, and what a call's headers say: a key in, the headers kept or the call refused."""

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.address import is_loopback_host
from fletcher_core.longbow.credentials import check_token
from fletcher_core.longbow.secret import Secret, same_secret
from fletcher_core.longbow.server.access import ServerTls, offered_tokens
from fletcher_core.telemetry.metrics import REJECTED

TIMEOUT_HEADER = "x-fletcher-timeout"
"""Seconds that a call may take. gRPC does not show a server the deadline of a call; when it passes, it only says that
the client has left."""
_HEADERS = "headers"
_MAX_SECONDS = 86_400.0


class CallHeaders(flight.ServerMiddleware):  # type: ignore[misc]
    """Keeps a call's headers, names in lower case; of one that comes twice, the first. No bytes, and no key."""

    def __init__(self, headers: Mapping[str, Sequence[str | bytes]]) -> None:
        super().__init__()
        self.headers = {
            name.lower(): values[0]
            for name, values in headers.items()
            if values and isinstance(values[0], str) and name.lower() not in ("authorization", "x-api-key")
        }


class KeyCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Keeps the headers of every call, and refuses one that brings none of the keys, as `authorization: Bearer <key>`
    or `x-api-key: <key>`. Without keys everybody may call."""

    def __init__(self, keys: Sequence[Secret]) -> None:
        super().__init__()
        self._keys = [key.reveal() for key in keys]

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, Sequence[str | bytes]]) -> CallHeaders:
        if self._keys:
            offered = offered_tokens(headers)
            # All are compared, so that the time does not tell which key is nearly right.
            matches = [same_secret(given, key) for given in offered for key in self._keys]
            if not any(matches):
                REJECTED.labels("unauthorized").inc()
                raise flight.FlightUnauthenticatedError("no valid key: send the header 'authorization: Bearer <key>'")
        return CallHeaders(headers)


def middleware(keys: Sequence[Secret]) -> dict[str, flight.ServerMiddlewareFactory]:
    """The argument of `FlightServerBase`."""
    return {_HEADERS: KeyCheck(keys)}


def call_headers(context: flight.ServerCallContext) -> dict[str, str]:
    """The headers of a call, such as `traceparent`, by their names in lower case."""
    kept = context.get_middleware(_HEADERS)
    return dict(kept.headers) if kept is not None else {}


def call_seconds(headers: Mapping[str, str]) -> float | None:
    """The seconds in `x-fletcher-timeout`; None where it is not there. Raises ArrowInvalid when it is no number."""
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise pa.ArrowInvalid(f"header {TIMEOUT_HEADER} is {text[:80]!r}: give a number of seconds, such as 2.5")
    return min(seconds, _MAX_SECONDS)


def check_keys(keys: Sequence[Secret | str]) -> tuple[Secret, ...]:
    """The keys, hidden. Raises ConfigError, without the key in its words, for one that no header can carry."""
    hidden = tuple(key if isinstance(key, Secret) else Secret(key) for key in keys)
    for number, key in enumerate(hidden):
        check_token(key.reveal(), f"keys, number {number + 1}")
    return hidden


def check_exposure(host: str, keys: Sequence[Secret], tls: ServerTls | None) -> None:
    """Raises ConfigError for a service that other machines can reach and that asks nobody who they are."""
    if not is_loopback_host(host) and not keys and (tls is None or tls.client_ca is None):
        raise ConfigError(
            f"host {host}: everybody on the network could use the service; set an API key (FLETCHER_API_KEY, or in a "
            "file), or listen on 127.0.0.1"
        )

"""Who may call the embedded server: certificate files and a token in, the arguments of a Flight server out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.flight as flight

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.address import is_loopback_host
from fletcher_core.longbow.credentials import check_token, read_authorities, read_key_pair, read_token_file
from fletcher_core.longbow.secret import Secret, same_secret


@dataclass(frozen=True)
class ServerTls:
    """PEM files of a server: its certificate and key, and the authorities whose clients alone may connect.

    With `client_ca` a client must show a certificate (mutual TLS). Files are read when the server starts. Raises
    ConfigError, naming the option, for a file that is missing, no PEM, or a key of another certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def flight_arguments(self) -> dict[str, Any]:
        """The arguments of `FlightServerBase`."""
        arguments: dict[str, Any] = {
            "tls_certificates": [read_key_pair(self.certificate, self.key, "--tls-cert", "--tls-key")]
        }
        if self.client_ca is not None:
            authorities = read_authorities(self.client_ca, "--tls-client-ca")
            arguments |= {"verify_client": True, "root_certificates": authorities}
        return arguments


class TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses every call that does not bring the token, as `authorization: Bearer <token>` or `x-api-key: <token>`.

    A token file is read for every call, so that a new token is in force at once. Raises ConfigError for none.
    """

    def __init__(self, token: Secret | None, token_file: Path | None) -> None:
        self._token, self._file = token, token_file
        self._wanted()

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, Sequence[str | bytes]]) -> None:
        try:
            wanted = self._wanted()
        except ConfigError as error:
            raise flight.FlightUnauthenticatedError("the server cannot read its token file") from error
        if not any(same_secret(given, wanted) for given in offered_tokens(headers)):
            raise flight.FlightUnauthenticatedError("no valid token")

    def _wanted(self) -> str:
        if self._file is not None:
            return read_token_file(self._file, "--token-file")
        assert self._token is not None
        return check_token(self._token.reveal(), "the server's token")


def offered_tokens(headers: Mapping[str, Sequence[str | bytes]]) -> list[str]:
    """The token of a call's headers, one at most: of a header that comes twice, or of both headers, none is taken."""
    bearers, keys = list(headers.get("authorization", ())), list(headers.get("x-api-key", ()))
    if len(bearers) + len(keys) != 1:
        return []
    (given,) = bearers or keys
    if not isinstance(given, str):
        return []
    if keys:
        return [given]
    scheme, _, token = given.partition(" ")
    return [token.strip(" ")] if scheme.lower() == "bearer" and token.strip(" ") else []


def check_exposure(host: str, *, has_token: bool, tls: ServerTls | None) -> None:
    """Raises ConfigError for a server that other machines can reach and that asks nobody who they are."""
    if not is_loopback_host(host) and not has_token and (tls is None or tls.client_ca is None):
        raise ConfigError(
            f"--host {host}: other machines could read and delete all rows; ask for a token (--token-file) or for "
            "client certificates (--tls-cert, --tls-key, --tls-client-ca), or listen on 127.0.0.1"
        )

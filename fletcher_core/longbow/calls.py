"""Longbow's status codes, as pyarrow shows them, in; errors that name the address, the call and a way out, out.

Every call to a server runs inside `longbow_call`, so that pyarrow's exceptions never reach a caller.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.errors import LongbowError, LongbowNotFound, LongbowRejected, LongbowUnavailable
from fletcher_core.longbow.breaker import CircuitBreaker, CircuitOpenError, Proof

_REFUSED = (flight.FlightUnauthenticatedError, flight.FlightUnauthorizedError)


class _NoOutage(LongbowUnavailable):
    """An answer, and no sign that the server is down."""


@contextmanager
def longbow_call(
    address: str, call: str, breaker: CircuitBreaker | None = None, proof: Proof = Proof.ANSWERS
) -> Iterator[None]:
    """Everything that Flight raises inside becomes a LongbowError that says which call to which address failed.

    With a breaker, it learns how the call ended; LongbowUnavailable is raised, and nothing done, while it is open.
    """
    where = f"Longbow at {address}, {call}"
    guard: AbstractContextManager[None] = nullcontext() if breaker is None else breaker.calling(proof, _is_outage)
    try:
        with guard:
            try:
                yield
            except (pa.ArrowException, flight.FlightError, OSError, KeyError) as error:
                raise longbow_error(error, where) from error
    except CircuitOpenError as refusal:
        raise LongbowUnavailable(f"{where}: not tried, {refusal}") from refusal


def _is_outage(error: Exception) -> bool | None:
    """None for what is no answer: an error on our side of the call, such as a token file that cannot be read."""
    if not isinstance(error, LongbowError):
        return None
    return isinstance(error, LongbowUnavailable) and not isinstance(error, _NoOutage)


def longbow_error(error: BaseException, where: str) -> LongbowError:
    """The error to raise for one of pyarrow's. Three status codes arrive as ArrowInvalid: only the words differ."""
    said = server_words(error)
    if isinstance(error, flight.FlightTimedOutError):
        return LongbowUnavailable(
            f"{where}: no answer before the deadline; the server is overloaded, out of its memory limit, or gone. "
            "Raise its LONGBOW_MAX_MEMORY or our timeout, or try again later"
        )
    if isinstance(error, flight.FlightCancelledError):
        # Only gRPC here says nothing at all: of a message over our limit, which the server has sent.
        kind = _NoOutage if said.endswith("with message:") else LongbowUnavailable
        return kind(
            f"{where}: the call was cancelled ({said}), by the server, by a proxy on the way, or because a message of "
            "the answer is over our limit. Try again, and if that does not help ask for fewer rows"
        )
    if isinstance(error, flight.FlightUnavailableError):
        return LongbowUnavailable(f"{where}: not reachable ({said}). Start the server or correct the address")
    if isinstance(error, _REFUSED):
        return LongbowRejected(f"{where}: access refused ({said}). Is that address a Longbow server?")
    if isinstance(error, KeyError):
        return LongbowNotFound(f"{where}: not found ({said})")
    if isinstance(error, NotImplementedError):
        return LongbowRejected(
            f"{where}: the server does not know this call ({said}). Data and meta address may be swapped, "
            "or the server is older than v0.1.2"
        )
    if isinstance(error, pa.ArrowInvalid):
        return _invalid(said, where)
    return LongbowUnavailable(f"{where}: the server failed ({said}). See its log; the call can be tried again")


def _invalid(said: str, where: str) -> LongbowError:
    lowered = said.lower()
    if "larger than max" in lowered:
        return LongbowRejected(
            f"{where}: {said}. Lower max_put_bytes, or raise the server's LONGBOW_GRPC_MAX_RECV_MSG_SIZE"
        )
    if "resource exhausted" in lowered:
        return LongbowUnavailable(f"{where}: the server is out of a resource ({said}). Try again later")
    if "precondition failed" in lowered:
        return _NoOutage(f"{where}: the dataset has no index yet ({said}). Try again later")
    return LongbowRejected(f"{where}: refused ({said}). The same request will be refused again")


def server_words(error: BaseException) -> str:
    """The server's own sentence, without the tracebacks and contexts that pyarrow and gRPC add."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    for cut in (". Detail:", " Detail:", " gRPC client debug context:", ". Client context:"):
        text = text.split(cut, 1)[0]
    return text.strip().rstrip(". ")

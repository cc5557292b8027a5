"""One HTTP request: its body within bounds, and its vectors, as long as the client is there and its time is not up."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from starlette.requests import ClientDisconnect, Request

from fletcher_core.errors import DeadlineExceeded, FletcherError
from fletcher_core.service.flight_access import TIMEOUT_HEADER
from fletcher_core.service.http.errors import Problem
from fletcher_core.telemetry.metrics import REJECTED
from fletcher_core.text_window import EmbeddedTexts


class Disconnected(Exception):
    """The client is gone: nobody needs an answer."""


class BodyRoom:
    """How many bytes of bodies the service holds at a time, from their arrival until they are answered.

    The queue alone would not do: it counts tokens, of which a text that is cut has few, however long it is.

    Args:
        most: bytes of all bodies together; one that comes alone may be of any size.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """What is to be called with the size of each piece of one body. It raises Problem when there is no room."""
        own = 0

        def take(size: int) -> None:
            nonlocal own
            if self.held > own and self.held + size > self._most:
                REJECTED.labels("overload").inc()
                said = f"the service holds {self.held} bytes of requests that wait: try again later"
                headers = {"retry-after": "1", "connection": "close"}
                raise Problem(429, said, "rate_limit_error", "overloaded", headers=headers)
            own += size
            self.held += size

        try:
            yield take
        finally:
            self.held -= own


async def read_body(request: Request, take: Callable[[int], None], most: int, seconds: float) -> bytes:
    """The whole body, of which each piece is told to `take`.

    Raises:
        Problem: it is longer than `most` bytes, or did not arrive within `seconds`; or there is no room for it.
        Disconnected: the client went away before.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > most):
        raise _too_large(most)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise _too_large(most)
                take(len(piece))
                pieces.append(piece)
    except TimeoutError:
        said = f"the request's body did not arrive within {seconds:g} s"
        raise Problem(408, said, code="body_timeout", headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise Disconnected from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def allowed_seconds(request: Request, most: float) -> float:
    """The time that the client allows in `x-fletcher-timeout`, the service's own where it says nothing.

    Raises:
        Problem: it is no number above 0.
    """
    said = request.headers.get(TIMEOUT_HEADER)
    if said is None:
        return most
    with suppress(ValueError):
        seconds = float(said)
        if 0 < seconds < math.inf:
            return min(seconds, most)
    raise Problem(400, f"{TIMEOUT_HEADER} is {said!r}: give a number of seconds above 0", param=TIMEOUT_HEADER)


async def vectors_of(
    request: Request, submit: Callable[[float], "Future[EmbeddedTexts]"], seconds: float, arrived: float
) -> EmbeddedTexts:
    """What `submit` gives, called with what is left of `seconds` since `arrived`, on the clock of `time.monotonic`.

    It is dropped where the client goes away or the time is up meanwhile.

    Raises:
        Problem: what the failure is in HTTP's terms.
        Disconnected: the client went away.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[None] = loop.create_future()
    left = arrived + seconds - time.monotonic()
    try:
        if left <= 0:
            raise _late(seconds)
        computing = submit(left)
    except FletcherError as error:
        raise Problem.of(error) from error

    def wake() -> None:
        if not answered.done():
            answered.set_result(None)

    def done(_: "Future[EmbeddedTexts]") -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(wake)

    computing.add_done_callback(done)
    gone = loop.create_task(_until_gone(request))
    gone.add_done_callback(lambda _: wake())
    timer = loop.call_later(left, wake)
    try:
        await answered
        if computing.done():
            return computing.result()
        if gone.done():
            REJECTED.labels("disconnected").inc()
            raise Disconnected
        raise _late(seconds)
    except FletcherError as error:
        raise Problem.of(error) from error
    finally:
        timer.cancel()
        gone.cancel()
        computing.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _late(seconds: float) -> DeadlineExceeded:
    REJECTED.labels("deadline").inc()
    return DeadlineExceeded(f"the texts were not embedded within {seconds:g} s: allow more time, or send fewer")


def _too_large(most: int) -> Problem:
    REJECTED.labels("too_large").inc()
    return Problem(413, f"the request's body is over {most} bytes: send fewer texts at a time", code="too_large")

"""What every request passes on its way in and out: its key is looked at, its id and its time are noted."""

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from opentelemetry.trace import SpanKind
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fletcher_core.longbow.secret import Secret, same_secret
from fletcher_core.service.http.call import Disconnected
from fletcher_core.service.http.errors import Problem, error_in_words_of
from fletcher_core.telemetry.logs import log_ids
from fletcher_core.telemetry.metrics import PANICS, REJECTED, REQUEST_SECONDS
from fletcher_core.telemetry.tracing import TRACER, context_from

_LOG = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

_REQUEST_ID = b"x-request-id"
_TRACE = (b"traceparent", b"tracestate", b"baggage")
_MOST_LETTERS = 128  # of an id that the client gives
_CLIENT_GONE = 499
_NO_ENTRY = Problem(
    401,
    "give an API key of this service: Authorization: Bearer KEY",
    code="invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)
_ENDING = Problem(
    503,
    "the service is ending, and the time for what it had begun is up: ask another one",
    "server_error",
    "ending",
    headers={"retry-after": "1", "connection": "close"},
)


class Door:
    """An ASGI application.

    Args:
        app: what is behind it.
        posts: by path, what answers a POST: the routes where every microsecond counts do not pass through `app`.
        keys: of which a request must carry one; none lets everybody in.
        routes: that exist; of others the metrics say "other".
        unlocked: routes that need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        posts: Mapping[str, Handler],
        keys: Sequence[Secret],
        routes: frozenset[str],
        unlocked: frozenset[str],
    ) -> None:
        self._app = app
        self._posts = posts
        self._keys = [key.reveal() for key in keys]
        self._routes = routes
        self._unlocked = unlocked
        self._failures = _Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        path: str = scope["path"]
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, request_id)]
            await send(message)

        route = path if path in self._routes else "other"
        if path in self._unlocked:  # probes come every few seconds: a trace and a line of each would bury the others'
            await self._answer(scope, receive, sending, path, headers)
            REQUEST_SECONDS.labels(route, str(status)).observe(time.perf_counter() - began)
            return
        caller = context_from(
            {name.decode("latin-1"): headers[name].decode("latin-1") for name in _TRACE if name in headers}
        )
        attributes = {"http.request.method": scope["method"], "url.path": path, "http.request_id": request_id.decode()}
        name = f"{scope['method']} {route}"
        with (
            log_ids(request_id=request_id.decode()),
            TRACER.start_as_current_span(name, caller, SpanKind.SERVER, attributes) as span,
        ):
            gone = await self._answer(scope, receive, sending, path, headers)
            status = _CLIENT_GONE if gone else status
            seconds = time.perf_counter() - began
            span.set_attribute("http.response.status_code", status)
            REQUEST_SECONDS.labels(route, str(status)).observe(seconds)
            if status >= 400:
                self._failures.tell(name, status, seconds)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, path: str, headers: Mapping[bytes, bytes]
    ) -> bool:
        """Whatever happens, the client gets an answer; whether it has gone before."""
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if self._keys and path not in self._unlocked and not self._opens(headers):
                REJECTED.labels("unauthorized").inc()
                await error_in_words_of(path, _NO_ENTRY)(scope, receive, sending)
            elif scope["method"] == "POST" and (answer := self._posts.get(path)) is not None:
                await (await answer(Request(scope, receive)))(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except Disconnected:
            return True
        except asyncio.CancelledError:  # at the end, when the time for what was begun is up
            REJECTED.labels("draining").inc()
            if not begun:
                await error_in_words_of(path, _ENDING)(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - see above
            PANICS.labels("http").inc()
            _LOG.exception("a request failed by an error that nobody planned for")
            if not begun:
                problem = Problem(500, f"an error that nobody planned for: {type(error).__name__}", "server_error")
                await error_in_words_of(path, problem)(scope, receive, sending)
        return False

    def _opens(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the request carries a key that is known; it takes as long whichever it is."""
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        # All are compared, so that the time does not tell which key is nearly right.
        matches = [same_secret(given.decode("latin-1"), key) for key in self._keys]
        return any(matches)


class _Failures:
    """A line of the log for a failed request; of many of one kind, one a second that counts the others."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], tuple[float, int]] = {}  # when, and how many since

    def tell(self, name: str, status: int, seconds: float) -> None:
        """By its route and status. Called on the event loop alone."""
        now = time.monotonic()
        told, untold = self._told.get((name, status), (-math.inf, 0))
        if now - told < 1.0:
            self._told[name, status] = (told, untold + 1)
            return
        self._told[name, status] = (now, 0)
        level = logging.WARNING if status >= 500 else logging.INFO
        more = f", and {untold} more like it since the last line" if untold else ""
        figures = {"status": status, "seconds": round(seconds, 4)}
        _LOG.log(level, "%s answered %d after %.3f s%s", name, status, seconds, more, extra=figures)


def _request_id(headers: Mapping[bytes, bytes]) -> bytes:
    given = headers.get(_REQUEST_ID, b"")[:_MOST_LETTERS]
    return given if given and all(0x21 <= letter <= 0x7E for letter in given) else os.urandom(16).hex().encode()

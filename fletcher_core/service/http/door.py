"""What every request passes on its way in and out: its key is looked at, its id and its time are noted."""

import asyncio
import logging
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

        caller = context_from(
            {name.decode("latin-1"): headers[name].decode("latin-1") for name in _TRACE if name in headers}
        )
        attributes = {"http.request.method": scope["method"], "url.path": path, "http.request_id": request_id.decode()}
        with (
            log_ids(request_id=request_id.decode()),
            TRACER.start_as_current_span("request", caller, SpanKind.SERVER, attributes) as span,
        ):
            try:
                if self._keys and path not in self._unlocked and not self._opens(headers):
                    REJECTED.labels("unauthorized").inc()
                    await error_in_words_of(path, _NO_ENTRY)(scope, receive, sending)
                elif scope["method"] == "POST" and (answer := self._posts.get(path)) is not None:
                    await (await answer(Request(scope, receive)))(scope, receive, sending)
                else:
                    await self._app(scope, receive, sending)
            except Disconnected:
                status = _CLIENT_GONE
            except asyncio.CancelledError:  # at the end, when the time for what was begun is up
                REJECTED.labels("draining").inc()
                if not status:
                    await error_in_words_of(path, _ENDING)(scope, receive, sending)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
                PANICS.labels("http").inc()
                _LOG.exception("a request failed by an error that nobody planned for")
                if not status:
                    problem = Problem(500, f"an error that nobody planned for: {type(error).__name__}", "server_error")
                    await error_in_words_of(path, problem)(scope, receive, sending)
            finally:
                span.set_attribute("http.response.status_code", status)
                route = path if path in self._routes else "other"
                REQUEST_SECONDS.labels(route, str(status)).observe(time.perf_counter() - began)

    def _opens(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the request carries a key that is known; it takes as long whichever it is."""
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        # All are compared, so that the time does not tell which key is nearly right.
        matches = [same_secret(given.decode("latin-1"), key) for key in self._keys]
        return any(matches)


def _request_id(headers: dict[bytes, bytes]) -> bytes:
    given = headers.get(_REQUEST_ID, b"")[:_MOST_LETTERS]
    return given if given and all(0x21 <= letter <= 0x7E for letter in given) else os.urandom(16).hex().encode()

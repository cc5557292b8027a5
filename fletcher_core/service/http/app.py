"""The ASGI application: which path is whose, and how it stands with the service."""

import asyncio
import html
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, cast

import pydantic
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from fletcher_core.service.batcher import Batcher
from fletcher_core.service.http.call import BodyRoom
from fletcher_core.service.http.door import Door, Handler
from fletcher_core.service.http.errors import (
    OpenAiError,
    Problem,
    TeiError,
    error_in_words_of,
    json_response,
    openai_error,
    tei_error,
)
from fletcher_core.service.http.openai import EmbeddingsRequest, EmbeddingsResponse, ModelList, OpenAiApi
from fletcher_core.service.http.tei import EmbedRequest, Info, TeiApi
from fletcher_core.service.readiness import Readiness, Report
from fletcher_core.service.settings import ServiceSettings
from fletcher_core.telemetry.metrics import REGISTRY

_LOOP_PAUSE = 0.25  # seconds between two looks at how late the event loop is
_TOO_LATE = 1.0
_UNLOCKED = frozenset({"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})
_PATHS = frozenset({"/v1/embeddings", "/v1/models", "/embed", "/info"})
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of this service."},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key."},
}
# What a request may be answered instead of vectors, beside what is wrong with it.
_FAILURES = {
    401: "No key of this service.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too much waits for the engine: come back after as many seconds as the header retry-after says.",
    503: "The engine failed, or the service is ending.",
    504: "The time that the client or the service allows is up.",
}
_OPENAI_FAILURES = {**_FAILURES, 400: "Something is wrong with the request.", 404: "The model is not served here."}
_TEI_FAILURES = {
    **_FAILURES,
    400: "There is no text.",
    413: "The body is too large, has too many texts, or a text is too long.",
    422: "The body has another form, or an item is no valid text.",
    424: "The engine failed.",
}


class Health(pydantic.BaseModel):
    """Whether the process keeps time."""

    status: str
    event_loop_late_seconds: float
    uptime_seconds: float


class HttpService:
    """The application, as `app`.

    Args:
        batcher: what embeds.
        settings: who may come in, and how much.
        readiness: what `/readyz` asks.
    """

    def __init__(self, batcher: Batcher, settings: ServiceSettings, readiness: Readiness) -> None:
        self._readiness = readiness
        self._started = time.time()
        self._late = 0.0
        self._looked_at = time.monotonic()
        # One thread: while a probe is out, others wait for what it finds.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series, and Prometheus needs none
        self._probing = ThreadPoolExecutor(1, thread_name_prefix="fletcher-readiness")
        room = BodyRoom(settings.max_held_bytes)
        openai = OpenAiApi(batcher, settings, room, int(self._started))
        tei = TeiApi(batcher, settings, room)
        api = _Described(
            title="Fletcher",
            version=version("fletcher"),
            description=f"Vectors of {batcher.embedder.dimension} elements by {batcher.embedder.card.name}.",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _no_such_route},
        )
        api.locked = _PATHS if settings.hidden_keys else frozenset()
        embeddings, embed = _answering(openai.embeddings, openai_error), _answering(tei.embed, tei_error)
        _post(api, "/v1/embeddings", embeddings, EmbeddingsRequest, EmbeddingsResponse, _OPENAI_FAILURES, OpenAiError)
        _post(api, "/embed", embed, EmbedRequest, list[list[float]], _TEI_FAILURES, TeiError)
        _get(api, "/v1/models", _answering(openai.models, openai_error), ModelList)
        _get(api, "/info", _answering(tei.info, tei_error), Info)
        _get(api, "/healthz", self._healthz, Health, 503)
        _get(api, "/readyz", self._readyz, Report, 503)
        api.add_api_route("/docs", _docs, methods=["GET"], include_in_schema=False)
        if settings.metrics:
            api.add_api_route("/metrics", self._metrics, methods=["GET"], response_class=PlainTextResponse)
        self.app = Door(
            api,
            posts={"/v1/embeddings": embeddings, "/embed": embed},
            keys=settings.hidden_keys,
            routes=_PATHS | _UNLOCKED,
            unlocked=_UNLOCKED,
        )

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(self._look_at_loop())
        try:
            yield
        finally:
            looking.cancel()
            self._probing.shutdown(wait=False)

    async def _look_at_loop(self) -> None:
        """How late the loop wakes whom it promised to."""
        while True:
            due = time.monotonic() + _LOOP_PAUSE
            await asyncio.sleep(_LOOP_PAUSE)
            self._looked_at = time.monotonic()
            self._late = self._looked_at - due

    async def _healthz(self, request: Request) -> Response:
        """The process lives and its event loop keeps time."""
        late = max(self._late, time.monotonic() - self._looked_at - _LOOP_PAUSE)
        is_alive = late < _TOO_LATE
        body = {
            "status": "ok" if is_alive else "the event loop is late",
            "event_loop_late_seconds": round(max(late, 0.0), 4),
            "uptime_seconds": round(time.time() - self._started, 1),
        }
        return json_response(body, 200 if is_alive else 503)

    async def _readyz(self, request: Request) -> Response:
        """The engine in use computes what it should, found out within the last second; Longbow's state is told."""
        report: Report | None = self._readiness.latest
        if report is None:
            report = await asyncio.get_running_loop().run_in_executor(self._probing, self._readiness.check)
        return json_response(report.as_dict(), 200 if report.ready else 503)

    async def _metrics(self, request: Request) -> Response:
        """For Prometheus; asks first whether the engine is well, which is one of them."""
        body = await asyncio.get_running_loop().run_in_executor(self._probing, self._scraped)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    def _scraped(self) -> bytes:
        self._readiness.check()
        return generate_latest(REGISTRY)


def _answering(handler: Handler, as_error: Callable[[Problem], Response]) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Problem as problem:
            return as_error(problem)

    answer.__doc__ = (handler.__doc__ or "").split("\n\n", maxsplit=1)[0]
    answer.__name__ = handler.__name__  # what the description calls it
    return answer


async def _docs(request: Request) -> Response:
    """Swagger's page, whose script comes from the web; where that cannot be had, what the page holds is this."""
    page = get_swagger_ui_html(openapi_url="/openapi.json", title="Fletcher", swagger_favicon_url="data:,")
    schema = request.app.openapi()
    routes = "".join(
        f"<li><code>{method.upper()} {path}</code> {html.escape(operation.get('description', ''))}</li>"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    plain = f'<h1>Fletcher</h1><ul>{routes}</ul><p>In full: <a href="/openapi.json">openapi.json</a></p>'
    place = b'<div id="swagger-ui">'
    return HTMLResponse(bytes(page.body).replace(place, place + plain.encode()))


class _Described(FastAPI):
    """FastAPI whose description says which routes are `locked`: they need a key."""

    locked: frozenset[str] = frozenset()

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            if self.locked:
                schema.setdefault("components", {})["securitySchemes"] = _SCHEMES
            for path in self.locked & schema["paths"].keys():
                for operation in schema["paths"][path].values():
                    operation["security"] = [{scheme: []} for scheme in _SCHEMES]
        return cast(dict[str, Any], self.openapi_schema)


async def _no_such_route(request: Request, error: Exception) -> Response:
    """404 and 405, in the words of the API that the path belongs to."""
    assert isinstance(error, HTTPException)
    problem = Problem(
        error.status_code,
        f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is",
        headers=dict(error.headers or {}),
    )
    return error_in_words_of(request.url.path, problem)


def _get(app: FastAPI, path: str, handler: Handler, answer: Any, other: int | None = None) -> None:
    """A route that is described by its `answer`, which another status may come with."""
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": answer} for status in (200, other) if status is not None
    }
    app.add_api_route(path, handler, methods=["GET"], response_model=None, responses=responses)


def _post(
    app: FastAPI, path: str, handler: Handler, body: Any, answer: Any, failures: dict[int, str], error: Any
) -> None:
    """A route that reads its body itself, described as if FastAPI did."""
    schema = {"content": {"application/json": {"schema": body.model_json_schema()}}, "required": True}
    failed: dict[int | str, dict[str, Any]] = {
        status: {"model": error, "description": said} for status, said in sorted(failures.items())
    }
    app.add_api_route(
        path,
        handler,
        methods=["POST"],
        response_model=None,
        responses={200: {"model": answer}, **failed},
        openapi_extra={"requestBody": schema},
    )

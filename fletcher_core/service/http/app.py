"""The ASGI application: which path is whose, and how it stands with the service."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from prometheus_client import disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from fletcher_core.service.batcher import Batcher
from fletcher_core.service.http.door import Door
from fletcher_core.service.http.errors import Problem, json_response, openai_error, tei_error
from fletcher_core.service.http.openai import EmbeddingsRequest, EmbeddingsResponse, OpenAiApi
from fletcher_core.service.http.tei import EmbedRequest, TeiApi
from fletcher_core.service.readiness import Readiness, Report
from fletcher_core.service.settings import ServiceSettings
from fletcher_core.telemetry.metrics import REGISTRY

Handler = Callable[[Request], Awaitable[Response]]
AsError = Callable[[Problem], Response]

_LOOP_PAUSE = 0.25  # seconds between two looks at how late the event loop is
_TOO_LATE = 1.0
_FRESH = 2.0
_UNLOCKED = frozenset({"/healthz", "/readyz", "/metrics", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
_PATHS = frozenset({"/v1/embeddings", "/v1/models", "/embed", "/info"})


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
        self._probing = ThreadPoolExecutor(1, thread_name_prefix="fletcher-readiness")
        openai = OpenAiApi(batcher, settings, int(self._started))
        tei = TeiApi(batcher, settings)
        self.app = app = FastAPI(
            title="Fletcher",
            version=version("fletcher"),
            description=f"Vectors of {batcher.embedder.dimension} elements by {batcher.embedder.card.name}.",
            redoc_url=None,
            lifespan=self._lifespan,
        )
        _post(app, "/v1/embeddings", openai.embeddings, openai_error, EmbeddingsRequest, EmbeddingsResponse)
        _post(app, "/embed", tei.embed, tei_error, EmbedRequest, list[list[float]])
        app.add_api_route("/v1/models", _answering(openai.models, openai_error), methods=["GET"])
        app.add_api_route("/info", _answering(tei.info, tei_error), methods=["GET"])
        app.add_api_route("/healthz", self._healthz, methods=["GET"])
        app.add_api_route("/readyz", self._readyz, methods=["GET"])
        if settings.metrics:
            app.add_api_route("/metrics", _metrics, methods=["GET"], response_class=Response)
        app.add_middleware(Door, keys=settings.hidden_keys, routes=_PATHS | _UNLOCKED, unlocked=_UNLOCKED)

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


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which Prometheus does not need


async def _metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


def _answering(handler: Handler, as_error: AsError) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Problem as problem:
            return as_error(problem)

    answer.__doc__ = handler.__doc__
    return answer


def _post(app: FastAPI, path: str, handler: Handler, as_error: AsError, body: Any, answer: Any) -> None:
    """A route that reads its body itself, described as if FastAPI did."""
    schema = {"content": {"application/json": {"schema": body.model_json_schema()}}, "required": True}
    app.add_api_route(
        path,
        _answering(handler, as_error),
        methods=["POST"],
        response_model=None,
        responses={200: {"model": answer}},
        openapi_extra={"requestBody": schema},
    )

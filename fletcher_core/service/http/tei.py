"""`POST /embed` and `GET /info`, in the shapes of Hugging Face's text-embeddings-inference.

Its answer is a bare list of vectors: there is no place for an item's error, so that a request with a bad item is
refused, and the error names the first of them, and how many more there are.
"""

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Literal

import orjson
import pydantic
from starlette.requests import Request
from starlette.responses import Response

from fletcher_core.errors import InputError
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.http.body import parse
from fletcher_core.service.http.call import BodyRoom, allowed_seconds, read_body, vectors_of
from fletcher_core.service.http.errors import Problem, json_response
from fletcher_core.service.http.openai import check_dimensions, describe_request, item_problem
from fletcher_core.service.items import Items, of_unit_length, shortened
from fletcher_core.service.settings import ServiceSettings

_NAMED = 5  # bad items in an error


class EmbedOptions(pydantic.BaseModel):
    """All of a request but its texts."""

    model_config = pydantic.ConfigDict(extra="ignore")

    normalize: bool = pydantic.Field(default=True, description="Vectors of unit length.")
    truncate: bool = pydantic.Field(default=False, description="Cut texts that are too long, instead of refusing them.")
    truncation_direction: Literal["right", "left", "Right", "Left"] = pydantic.Field(
        default="right", description="Only right: the head of a text is kept."
    )
    prompt_name: str | None = pydantic.Field(
        default=None,
        description="query takes the model's prompt for queries; document, and none, the one for documents.",
    )
    dimensions: int | None = pydantic.Field(default=None, ge=1, description="Keep so many elements of each vector.")


class EmbedRequest(EmbedOptions):
    """What is to be embedded."""

    inputs: str | list[str] | list[int] | list[list[int]] = pydantic.Field(
        description="A text, a list of texts, the token ids of one text, or a list of token ids."
    )


_QUERIES = ("query", "search_query")
_DOCUMENTS = (None, "", "document", "passage", "corpus", "search_document")


class PoolingInfo(pydantic.BaseModel):
    """How token vectors become a text's."""

    pooling: str


class ModelType(pydantic.BaseModel):
    """What the model is for."""

    embedding: PoolingInfo


class Info(pydantic.BaseModel):
    """What is served, and its limits; what follows `version` is Fletcher's own."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    dimension: int
    normalized: bool
    engine: str
    device: str
    tokenizer: str
    pid: int


class TeiApi:
    """The two routes."""

    def __init__(self, batcher: Batcher, settings: ServiceSettings, room: BodyRoom) -> None:
        self._batcher = batcher
        self._settings = settings
        self._room = room

    async def embed(self, request: Request) -> Response:
        """Vectors of texts or token ids, as text-embeddings-inference gives them.

        Raises:
            Problem: the request gets no vectors.
        """
        with self._room.share() as take:
            return await self._embed(request, take)

    async def _embed(self, request: Request, take: Callable[[int], None]) -> Response:
        settings, embedder = self._settings, self._batcher.embedder
        arrived = time.monotonic()
        seconds = allowed_seconds(request, settings.batching.request_timeout)
        body = await read_body(request, take, settings.max_body_bytes, settings.body_timeout)
        given, asked = parse(body, "inputs", EmbedOptions)
        if not given and isinstance(given, list):
            raise Problem(400, "inputs is an empty list: give at least one text", code="empty_input", param="inputs")
        try:
            items = Items.of(given, embedder, settings.max_items)
        except InputError as error:
            raise Problem.of(error) from None
        self._check(asked)
        kind: Literal["queries", "documents"] = "queries" if asked.prompt_name in _QUERIES else "documents"
        result = await vectors_of(request, lambda left: items.submit(self._batcher, left, kind), seconds, arrived)
        describe_request(len(items), result, embedder)
        refuse_cut = not asked.truncate and embedder.encoder.long_text == "truncate"
        if errors := items.errors(result, embedder, refuse_cut=refuse_cut):
            said = [item_problem(error, "inputs", at) for at, error in errors.items()]
            more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
            words = "; ".join(problem.message for problem in said[:_NAMED]) + more
            raise Problem(said[0].status, words, code=said[0].code)
        vectors = shortened(result.vectors, asked.dimensions, embedder.normalize)
        if asked.normalize and not embedder.normalize:
            vectors = of_unit_length(vectors)
        rows = b",".join(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in vectors)
        return Response(b"[%b]" % rows, media_type="application/json")

    async def info(self, _: Request) -> Response:
        """What is served, and its limits."""
        embedder, settings = self._batcher.embedder, self._settings
        return json_response(
            {
                "model_id": embedder.card.name,
                "model_sha": embedder.card.fingerprint,
                "model_dtype": embedder.engine.precision,
                "model_type": {"embedding": {"pooling": embedder.package.pooling}},
                "max_concurrent_requests": settings.max_connections,
                "max_input_length": embedder.encoder.max_length,
                "max_batch_tokens": embedder.engine.batching.token_budget,
                "max_batch_requests": None,
                "max_client_batch_size": settings.max_items,
                "auto_truncate": False,
                "tokenization_workers": 1,
                "version": version("fletcher"),
                "dimension": embedder.dimension,
                "normalized": embedder.normalize,
                "engine": embedder.engine.name,
                "device": embedder.engine.device,
                "tokenizer": embedder.encoder.tokenizer.name,
                "pid": os.getpid(),
            }
        )

    def _check(self, asked: EmbedOptions) -> None:
        embedder = self._batcher.embedder
        check_dimensions(asked.dimensions, embedder)
        if asked.truncation_direction.lower() == "left":
            raise Problem(400, "truncation_direction is 'left'; this service keeps the head of a text: leave it out")
        if not asked.normalize and embedder.normalize:
            raise Problem(
                400, "normalize is false, and this service's vectors are of unit length: start it with --no-normalize"
            )
        if asked.prompt_name not in (*_QUERIES, *_DOCUMENTS):
            raise Problem(400, f"prompt_name is {asked.prompt_name!r}; this service knows query and document")

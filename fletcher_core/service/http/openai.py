"""`POST /v1/embeddings` and `GET /v1/models`, in the shapes of OpenAI's API.

An item that cannot be embedded has an error of its own in its place, and a null for its vector, when others of the same
request can; a request of which no item can be is answered with the first one's error.
"""

import base64
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import orjson
import pydantic
from opentelemetry import trace
from starlette.requests import Request
from starlette.responses import Response

from fletcher_core.embed_call import Vectors
from fletcher_core.embedder import Embedder
from fletcher_core.errors import InputError
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.http.body import parse
from fletcher_core.service.http.call import BodyRoom, allowed_seconds, read_body, vectors_of
from fletcher_core.service.http.errors import OpenAiErrorObject, Problem, json_response
from fletcher_core.service.items import ItemError, Items, shortened
from fletcher_core.service.settings import ServiceSettings
from fletcher_core.text_window import EmbeddedTexts


class EmbeddingsOptions(pydantic.BaseModel):
    """All of a request but its texts."""

    model_config = pydantic.ConfigDict(extra="ignore")

    model: str = pydantic.Field(default="", description="The served model's name, or one of its aliases.")
    encoding_format: Literal["float", "base64"] = pydantic.Field(
        default="float", description="base64 is of little-endian float32."
    )
    dimensions: int | None = pydantic.Field(
        default=None, ge=1, description="Keep so many leading elements of each vector, scaled to unit length again."
    )
    user: str | None = pydantic.Field(default=None, description="Accepted, not used.")


class EmbeddingsRequest(EmbeddingsOptions):
    """What is to be embedded. Token ids are of this model's own tokenizer, special tokens included."""

    input: str | list[str] | list[int] | list[list[int]] = pydantic.Field(
        description="A text, a list of texts, the token ids of one text, or a list of token ids."
    )


class Embedding(pydantic.BaseModel):
    """One item's vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | None
    error: OpenAiErrorObject | None = None


class Usage(pydantic.BaseModel):
    """Tokens that were computed; those of texts in the cache are not."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(pydantic.BaseModel):
    """The vectors, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(pydantic.BaseModel):
    """A model that is served; `created` in seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(pydantic.BaseModel):
    """Every model that is served."""

    object: Literal["list"] = "list"
    data: list[Model]


class OpenAiApi:
    """The two routes."""

    def __init__(self, batcher: Batcher, settings: ServiceSettings, room: BodyRoom, started: int) -> None:
        self._batcher = batcher
        self._settings = settings
        self._room = room
        self._names = {batcher.embedder.card.name, *settings.model_aliases}
        self._started = started
        self._model = orjson.dumps(batcher.embedder.card.name).decode()

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts or token ids, as OpenAI's API gives them.

        Raises:
            Problem: the request gets no vectors.
        """
        with self._room.share() as take:
            return await self._embeddings(request, take)

    async def _embeddings(self, request: Request, take: Callable[[int], None]) -> Response:
        settings = self._settings
        arrived = time.monotonic()
        seconds = allowed_seconds(request, settings.batching.request_timeout)
        body = await read_body(request, take, settings.max_body_bytes, settings.body_timeout)
        given, asked = parse(body, "input", EmbeddingsOptions)
        self._check_model(asked.model)
        embedder = self._batcher.embedder
        try:
            items = Items.of(given, embedder, settings.max_items)
        except InputError as error:
            raise Problem.of(error) from None
        check_dimensions(asked.dimensions, embedder)
        result = await vectors_of(request, lambda left: items.submit(self._batcher, left), seconds, arrived)
        errors = items.errors(result, embedder)
        if len(errors) == len(items):
            raise item_problem(errors[0], "input", 0)
        vectors = shortened(result.vectors, asked.dimensions, embedder.normalize)
        answer = self._answer(vectors, asked.encoding_format, errors, result)
        describe_request(len(items), result, embedder)
        return Response(answer, media_type="application/json")

    async def models(self, _: Request) -> Response:
        """The one model that is served."""
        card = self._batcher.embedder.card
        model = {"id": card.name, "object": "model", "created": self._started, "owned_by": "fletcher"}
        return json_response({"object": "list", "data": [model]})

    def _check_model(self, name: str) -> None:
        if name and name not in self._names:
            raise Problem(
                404,
                f"the model {name!r} is not served here; this is {self._batcher.embedder.card.name!r}",
                code="model_not_found",
                param="model",
            )

    def _answer(self, vectors: Vectors, encoding: str, errors: dict[int, ItemError], result: EmbeddedTexts) -> bytes:
        parts: list[bytes] = []
        cut = result.cut if self._batcher.embedder.encoder.long_text == "truncate" else np.zeros(len(vectors), bool)
        for index, row in enumerate(vectors):
            if index in errors:
                error = orjson.dumps(item_problem(errors[index], "input", index).as_openai())
                parts.append(b'{"object":"embedding","index":%d,"embedding":null,"error":%b}' % (index, error))
                continue
            if encoding == "base64":
                vector = b'"%b"' % base64.b64encode(row.astype("<f4", copy=False).tobytes())
            else:
                vector = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
            mark = b',"truncated":true' if cut[index] else b""
            parts.append(b'{"object":"embedding","index":%d,"embedding":%b%b}' % (index, vector, mark))
        tokens = result.computed_tokens
        end = f'],"model":{self._model},"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}'
        return b'{"object":"list","data":[%b%b' % (b",".join(parts), end.encode())


def describe_request(texts: int, result: EmbeddedTexts, embedder: Embedder) -> None:
    """What was asked for, in the span of the request."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes(
            {
                "fletcher.model": embedder.card.name,
                "fletcher.texts": texts,
                "fletcher.tokens": result.computed_tokens,
                "fletcher.truncated": int(result.cut.sum()),
            }
        )


def check_dimensions(dimensions: int | None, embedder: Embedder) -> None:
    """Raises Problem when vectors are not as long."""
    if dimensions is not None and dimensions > embedder.dimension:
        raise Problem(
            400, f"dimensions is {dimensions}; vectors of this model have {embedder.dimension}", param="dimensions"
        )


def item_problem(error: ItemError, texts: str, index: int) -> Problem:
    """An item's error as if its request were nothing else; `texts` is what the items are called."""
    where = f"{texts}[{index}]"
    if error.is_ours:
        return Problem(503, f"{where} {error.message}", "server_error", error.code, where)
    return Problem(400, f"{where} {error.message}", code=error.code, param=where)

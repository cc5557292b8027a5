"""What can go wrong with a request, and how each API says so."""

from dataclasses import dataclass, field

import orjson
import pydantic
from starlette.responses import Response

from fletcher_core.errors import DeadlineExceeded, FletcherError, InputError, Overloaded


@dataclass(eq=False)
class Problem(Exception):
    """A request that gets no vectors. `kind` and `code` are OpenAI's words, `param` the field of the body."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def as_openai(self) -> dict[str, str | None]:
        """The error object of OpenAI's API."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}

    @classmethod
    def of(cls, error: FletcherError) -> "Problem":
        """Fletcher's own failures in HTTP's terms."""
        if isinstance(error, Overloaded):
            retry = {"retry-after": f"{error.retry_after:.0f}"}
            return cls(429, str(error), "rate_limit_error", "overloaded", headers=retry)
        if isinstance(error, DeadlineExceeded):
            return cls(504, str(error), "server_error", "deadline_exceeded")
        if isinstance(error, InputError):
            return cls(400, str(error), "invalid_request_error", "invalid_input", "input")
        return cls(503, str(error), "server_error", "engine_failed", headers={"retry-after": "5"})


# The types of text-embeddings-inference, each with its status there: by the code of ours, else by our status.
_TEI_BY_CODE = {
    "empty_input": (400, "empty"),
    "invalid_input": (413, "validation"),
    "too_long": (413, "validation"),
    "empty_text": (422, "validation"),
    "invalid_text": (422, "tokenizer"),
    "invalid_tokens": (422, "tokenizer"),
    "engine_failed": (424, "backend"),
    "invalid_vector": (424, "backend"),
}
_TEI_BY_STATUS = {
    400: (422, "validation"),
    401: (401, "unauthorized"),
    429: (429, "overloaded"),
    500: (500, "backend"),
    503: (503, "unhealthy"),
    504: (504, "deadline_exceeded"),
}


class OpenAiErrorObject(pydantic.BaseModel):
    """What is wrong; `param` names the field or the item."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAiError(pydantic.BaseModel):
    """An error as the OpenAI API answers it."""

    error: OpenAiErrorObject


class TeiError(pydantic.BaseModel):
    """An error as text-embeddings-inference answers it."""

    error: str
    error_type: str


def openai_error(problem: Problem) -> Response:
    """As the OpenAI API answers."""
    return json_response({"error": problem.as_openai()}, problem.status, problem.headers)


def tei_error(problem: Problem) -> Response:
    """As text-embeddings-inference answers, with its statuses: a body of the wrong form is 422 there."""
    status, kind = _TEI_BY_CODE.get(problem.code or "") or _TEI_BY_STATUS.get(
        problem.status, (problem.status, "validation")
    )
    return json_response({"error": problem.message, "error_type": kind}, status, problem.headers)


def error_in_words_of(path: str, problem: Problem) -> Response:
    """As the API answers that `path` belongs to."""
    return openai_error(problem) if path.startswith("/v1/") else tei_error(problem)


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Any JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")

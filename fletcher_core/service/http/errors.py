"""What can go wrong with a request, and how each API says so."""

from dataclasses import dataclass, field

import orjson
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


# What text-embeddings-inference calls them, by status.
_TEI_TYPES = {
    401: "unauthorized",
    413: "validation",
    422: "validation",
    429: "overloaded",
    503: "backend",
    504: "deadline_exceeded",
}


def openai_error(problem: Problem) -> Response:
    """As the OpenAI API answers."""
    return json_response({"error": problem.as_openai()}, problem.status, problem.headers)


def tei_error(problem: Problem) -> Response:
    """As text-embeddings-inference answers: what is wrong with the body is 422 there."""
    status = 422 if problem.status == 400 else problem.status
    body = {"error": problem.message, "error_type": _TEI_TYPES.get(status, "validation")}
    return json_response(body, status, problem.headers)


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Any JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")

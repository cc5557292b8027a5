"""A request's body in, its fields out: the texts looked at one by one, the rest as its pydantic model says.

pydantic would collect a complaint for every item and every shape that an item might have had: of a body of millions of
wrong items that is gigabytes. Here the first one is enough.
"""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import orjson
import pydantic

from fletcher_core.service.http.errors import Problem

Given = str | list[str] | list[int] | list[list[int]]
Options = TypeVar("Options", bound=pydantic.BaseModel)


def parse(body: bytes, name: str, model: type[Options]) -> tuple[Given, Options]:
    """The texts, or token ids, in the field `name`, and the other fields as a `model`.

    Raises:
        Problem: the body is no JSON object, or a field has a value that it cannot have.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is no valid JSON: {error}") from None
    if type(fields) is not dict:
        raise Problem(400, "the body is no JSON object: send one with the fields that /docs lists")
    if name not in fields:
        raise Problem(400, f"{name} is missing: give a text, or a list of texts", param=name)
    given = fields.pop(name)
    where = _misplaced(given, name)
    if where:
        raise Problem(
            400,
            f"{where} is neither a text nor token ids: {name} is a text, a list of texts, or lists of ids",
            param=where,
        )
    try:
        return cast(Given, given), model.model_validate(fields, strict=True)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = str(found["loc"][0]) if found["loc"] else None
        raise Problem(400, f"{field or 'the body'}: {found['msg']}", param=field) from None


def _misplaced(given: Any, name: str) -> str:
    """Where something is that cannot be; '' where all is well."""
    if type(given) is str:
        return ""
    if type(given) is not list:
        return name
    if not given:
        return ""
    kind = type(given[0])
    if kind not in (str, int, list):
        return f"{name}[0]"
    if set(map(type, given)) != {kind}:
        return f"{name}[{_other(given, kind)}]"
    if kind is list:
        for at, ids in enumerate(given):
            if ids and set(map(type, ids)) != {int}:
                return f"{name}[{at}][{_other(ids, int)}]"
    return ""


def _other(items: Sequence[Any], kind: type) -> int:
    """The place of the first item of another type."""
    return next(at for at, item in enumerate(items) if type(item) is not kind)

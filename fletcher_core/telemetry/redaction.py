"""What may be shown to others of a value: secrets in, `***` out."""

import re
from collections.abc import Mapping
from typing import Any

from fletcher_core.longbow.secret import Secret

HIDDEN = "***"

# Whole words of a name: `token_header` is one to hide, `tokens` and `tokens_per_s` are figures.
_WORDS = r"token|password|passwd|passphrase|secret|authorization|(?:api|private|access)[_\- ]?key"
_SECRET_KEY = re.compile(rf"(^|[_.\- ])({_WORDS}|cookie|credentials?)($|[_.\- ])", re.IGNORECASE)
_IN_TEXT = (
    # Authorization: Bearer ..., and a bare "Bearer ...".
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9\-._~+/]{4,}=*", re.IGNORECASE), r"\1 ***"),
    # token=..., "api_key": "...", password: ...
    (
        re.compile(
            rf"((?<![A-Za-z])(?:{_WORDS})[\"']?\s*(?:=|:(?!/))\s*[\"']?)(?!\*\*\*|bearer\b|basic\b)[^\s\"',;&)}}\]]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    # https://name:password@host. Not by its scheme: of a long text each letter may begin one, and what follows would
    # be read as often.
    (re.compile(r"(://)[^\s/@]+@"), r"\1***@"),
)


def without_secrets(value: Any) -> Any:
    """`value` for other eyes: a `Secret`, the values of keys such as token, password, authorization and api_key, and
    what stands in a text as one of these, as `***`. What JSON does not know becomes a text."""
    if isinstance(value, str):
        for pattern, instead in _IN_TEXT:
            value = pattern.sub(instead, value)
        return value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if _SECRET_KEY.search(str(key)) else without_secrets(held) for key, held in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [without_secrets(held) for held in value]
    return without_secrets(str(value))

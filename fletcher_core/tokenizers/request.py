"""What may be asked of a tokenizer: texts in any usual container, settings that can work. The rest is refused."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import pyarrow as pa

from fletcher_core.errors import ConfigError, InputError
from fletcher_core.setting_values import check_whole

Column: TypeAlias = "list[str] | pa.Array | pa.ChunkedArray"

_BINARY = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def as_column(texts: Any) -> Column:
    """`texts` as a list of str or an Arrow array of strings or bytes.

    Takes any iterable of str, an Arrow array, and whatever offers itself as one (a polars or pandas Series).

    Raises:
        InputError: it is none of these; the message names the first item that is no str.
    """
    if isinstance(texts, str):
        raise InputError("a list of texts is needed, not one str: write [text]")
    if isinstance(texts, set | frozenset):
        raise InputError(f"a list of texts is needed, not a {type(texts).__name__}: vectors come back in their order")
    if not isinstance(texts, pa.Array | pa.ChunkedArray) and hasattr(texts, "__arrow_c_stream__"):
        try:
            texts = pa.chunked_array(texts)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InputError(f"the {type(texts).__name__} cannot be read as an Arrow array: {error}") from error
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        binary_type(texts)
        return texts
    if not isinstance(texts, Iterable):
        raise InputError(f"a list of str or an Arrow array of strings is needed, not a {type(texts).__name__}")
    items = list(texts)
    if set(map(type, items)) <= {str}:  # nearly always, and far quicker than a look at each
        return items
    for row, text in enumerate(items):
        if not isinstance(text, str):
            raise InputError(f"text {row} is {type(text).__name__}, not str: drop it or fill it before embedding")
    return items


def binary_type(texts: "pa.Array | pa.ChunkedArray") -> pa.DataType:
    """The type that holds the same bytes as `texts`, valid UTF-8 or not.

    Raises:
        InputError: the array is neither of strings nor of bytes.
    """
    kind = texts.type
    if kind in _BINARY.values():
        return kind
    if kind in _BINARY:
        return _BINARY[kind]
    remedy = "pick one of its columns" if pa.types.is_struct(kind) else "cast it with .cast(pa.string())"
    raise InputError(f"an Arrow array of strings is needed, not of {kind}: {remedy}")


def check_settings(*, specials: int, max_length: int | None, keep: str, prompt: str, threads: int) -> None:
    """Raises `ConfigError` for a setting that cannot work; `specials` is how many special tokens a text gets."""
    if keep not in ("head", "tail"):
        raise ConfigError(f"keep is {keep!r}; choose one of head, tail")
    if max_length is not None:
        check_whole("max_length", max_length, 0)
        if max_length < specials:
            raise ConfigError(f"max_length {max_length} leaves no room for the {specials} special tokens of a text")
    check_whole("threads", threads, 1)
    check_prompt("prompt", prompt)


def check_prompt(name: str, prompt: object) -> None:
    """Raises `ConfigError` unless `prompt` is a str that is valid Unicode."""
    if not isinstance(prompt, str):
        raise ConfigError(f"{name} is {prompt!r}; it must be a str, and '' is none")
    if reason := surrogate_reason(prompt):
        raise ConfigError(f"the {name} {reason}")


def check_seconds(setting: str, value: object) -> None:
    """ConfigError unless `value` is a number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(f"{setting} is {value!r}; it must be a number of seconds, 0 or more")


def surrogate_reason(text: str) -> str:
    """Why a str is not Unicode, to complete the sentence "text 7 ..."; '' where it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"holds a lone surrogate at character {error.start} and is not valid Unicode: "
            "replace it with text.encode(errors='replace').decode()"
        )
    return ""


def bytes_reason(at: int) -> str:
    """The same for bytes whose first invalid sequence begins at `at`."""
    return f"is not valid UTF-8 from byte {at} on: decode its bytes with errors='replace'"

"""What is wrong with a text that cannot be tokenized, in words that complete the sentence "text 7 ..."."""

from collections.abc import Iterable

import pyarrow as pa

from fletcher_core.errors import InputError

_REMEDY = "decode its bytes with errors='replace'"


def check_strings(texts: Iterable[object]) -> None:
    """Raises `InputError`, naming the position, for the first item that is no str."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {row} is {type(text).__name__}, not str: drop it or fill it before embedding")


def surrogate_reason(text: str) -> str:
    """Why a str is not Unicode; '' where it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate at character {error.start} and is not valid Unicode: {_REMEDY}"
    return ""


def bytes_reason(at: int) -> str:
    """Why bytes whose first invalid sequence begins at `at` are no text."""
    return f"is not valid UTF-8 from byte {at} on: {_REMEDY}"


def binary_type(texts: "pa.Array | pa.ChunkedArray") -> pa.DataType:
    """The type that holds the same bytes as `texts`, valid UTF-8 or not.

    Raises:
        InputError: the array is neither of strings nor of bytes.
    """
    kind = texts.type
    for strings, binary in (
        (pa.string(), pa.binary()),
        (pa.large_string(), pa.large_binary()),
        (pa.string_view(), pa.binary_view()),
    ):
        if kind in (strings, binary):
            return binary
    raise InputError(f"an Arrow array of strings is needed, not of {kind}: cast it with .cast(pa.string())")

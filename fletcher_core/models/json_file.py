"""A model's JSON file in, checked values out; whatever else stands there is a ModelError that names file and key.

The files come from other people. Nothing is read that is too large, and no value goes on that has not been looked at.
"""

import json
import math
from pathlib import Path
from typing import Any

from fletcher_core.errors import ModelError

MAX_BYTES = 4 * 2**20
"""Of a configuration file. Real ones have some kB; a parsed value takes up to thirty times its text in memory."""
_LARGEST = 2**31 - 1


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ModelError: the file is missing, too large, or holds something else.
    """
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_any_json(path: Path) -> Any:
    """As `read_json`, for files that may hold a list too."""
    check_size(path, MAX_BYTES)
    try:
        with path.open("rb") as file:  # the file may have grown since
            return json.loads(file.read(MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({brief(error)}): download the model again") from error


def check_size(path: Path, most: int) -> None:
    """Raises ModelError unless `path` is a regular file of at most so many bytes."""
    if not path.is_file():  # a pipe, for one, would be waited for without end
        raise ModelError(f"{path} is missing: a model folder needs config.json, model.safetensors and tokenizer.json")
    if (size := path.stat().st_size) > most:
        raise ModelError(f"{path} has {size} bytes, and more than {most} are not read: it is not what its name says")


def whole(
    values: dict[str, Any], key: str, path: Path, *, least: int = 1, most: int = _LARGEST, default: int | None = None
) -> int:
    """The whole number under `key`; `default`, if there is one, where the key is missing or null."""
    value = _present(values, key, path) if default is None else values.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ModelError(f"{path}: {key} is {brief(repr(value))}; it must be a whole number from {least} to {most}")
    return value


def number(
    values: dict[str, Any], key: str, path: Path, *, least: float, most: float, default: float | None = None
) -> float:
    """The finite number under `key`, `least` and `most` included; `default` as for `whole`."""
    value = _present(values, key, path) if default is None else values.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ModelError(f"{path}: {key} is {brief(repr(value))}; it must be a number from {least:g} to {most:g}")
    return float(value)


def flag(values: dict[str, Any], key: str, path: Path) -> bool:
    """The truth value under `key`, False where it is missing or null."""
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{path}: {key} is {brief(repr(value))}; it must be true or false")
    return bool(value)


def text(value: object, key: str, path: Path) -> str:
    """`value`, found under `key`, as a str that is valid Unicode."""
    if not isinstance(value, str):
        raise ModelError(f"{path}: {key} is {brief(repr(value))}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ModelError(f"{path}: {key} is {brief(repr(value))}, which is not valid Unicode") from None
    return value


def entries(values: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The object under `key`, empty where it is missing or null."""
    value = values.get(key)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"{path}: {key} is {brief(repr(value))}; it must be an object")
    return value or {}


def length_limit(values: dict[str, Any], key: str, path: Path) -> float | None:
    """A number of tokens, 1 or more, or None; 1e30 and the like mean "no limit" and come back as they are."""
    value = values.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if not is_number or value < 1 or (isinstance(value, float) and math.isfinite(value) and value % 1):
        raise ModelError(f"{path}: {key} is {brief(repr(value))}; it must be a whole number of tokens, 1 or more")
    return value


def brief(words: object) -> str:
    """What a message quotes of a file: not more than a line or two."""
    said = str(words)
    return said if len(said) <= 200 else f"{said[:150]}... ({len(said)} characters)"


def _present(values: dict[str, Any], key: str, path: Path) -> Any:
    if key not in values:
        raise ModelError(f"{path} has no field {key!r}: the checkpoint is incomplete, download it again")
    return values[key]

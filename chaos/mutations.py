"""Bytes or JSON in, damaged bytes out: each mutation draws from the `Random` that it is given, and nothing else."""

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

Path: TypeAlias = "tuple[str | int, ...]"

# What `json.dumps` cannot write: a string of this form in the value becomes the raw text.
_RAW = {
    "\x01deep list\x01": "[" * 2000 + "]" * 2000,
    "\x01deep object\x01": '{"a":' * 2000 + "1" + "}" * 2000,
    "\x01very deep\x01": "[" * 200_000 + "]" * 200_000,
    "\x01digits\x01": "9" * 5000,
    "\x01exponent\x01": "1e999999999",
    "\x01half\x01": '{"a":',
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", [], {}, [[]], [None], {"": ""}, {"a": {"a": {}}}),
    *(0, 1, -1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**9, 10**12),
    *(10**30, -(10**30), 0.5, 1.5, -0.0, 1e-320, 1e30, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("0", "1", "null", "a", "\x00", "\ud800", "é", "\u202e", "../../..", "/", "/proc/self/mem", "x" * 100_000),
    *([0] * 1000, [[0]] * 1000, ["a", "a"], {str(n): n for n in range(1000)}, *_RAW),
)
_BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"{", b"}", b"[", b'"', b"\\", b"\xed\xa0\x80", b"\xf0\x9f", b"\x00" * 8)


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Flip, overwrite, insert, cut out, repeat, truncate or move some of the bytes."""
    if not data:
        return random.randbytes(random.randrange(64))
    at = random.randrange(len(data))
    length = min(len(data) - at, random.choice((1, 2, 4, 8, 64, 1024)))
    piece = data[at : at + length]
    kind = random.randrange(8)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + random.randbytes(length) + data[at + length :]
    if kind == 2:
        return data[:at] + random.choice(_BYTES) + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[:at] + piece * random.choice((2, 3, 100)) + data[at + length :]
    if kind == 5:
        return data[:at]
    if kind == 6:
        value = random.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), random.getrandbits(63)))
        width = random.choice((1, 2, 4, 8))
        number = (value % 2 ** (8 * width)).to_bytes(width, "little")
        return data[:at] + number + data[at + width :]
    target = random.randrange(len(data))
    return data[:target] + piece + data[target + length :]


def mutate_json(data: bytes, random: Random) -> bytes:
    """Change the value at a random place of a JSON document; falls back to `mutate_bytes` where it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, random)
    return write_json(mutate_value(document, random), random)


def mutate_value(document: Any, random: Random) -> Any:
    """The document with another value, another key, or one entry more or less. The document itself may be changed."""
    place = _random_place(document, random)
    if not place:
        return any_value(random)
    parent = document
    for step in place[:-1]:
        parent = parent[step]
    key = place[-1]
    change = random.choice((_replace, _replace, _replace, _remove, _rename, _add, _copy, _near))
    change(document, parent, key, random)
    return document


def write_json(document: Any, random: Random) -> bytes:
    """As bytes, with what no JSON library writes by itself: duplicate keys, absurd nesting, another encoding."""
    text = json.dumps(document, indent=random.choice((None, None, 1)))
    for marker, raw in _RAW.items():
        text = text.replace(json.dumps(marker), raw)
    if random.random() < 0.05 and isinstance(document, dict) and document:
        key = json.dumps(random.choice(list(document)))
        value = json.dumps(any_value(random))
        text = f"{{{key}: {value}, {text.lstrip()[1:]}" if random.random() < 0.5 else f"{text[:-1]}, {key}: {value}}}"
    if random.random() < 0.03:
        return text.encode(random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be")))
    return text.encode()


def any_value(random: Random) -> Any:
    """One of VALUES, as an object of its own."""
    return copy.deepcopy(random.choice(VALUES))


def _random_place(document: Any, random: Random) -> Path:
    """A way down into the document, () for the whole; every depth is about as likely as the next."""
    place: list[str | int] = []
    while isinstance(document, dict | list) and document and (not place or random.random() < 0.8):
        step: Any = random.choice(list(document)) if isinstance(document, dict) else random.randrange(len(document))
        place.append(step)
        document = document[step]
    return tuple(place) if random.random() > 0.02 else ()


def _replace(_: Any, parent: Any, key: Any, random: Random) -> None:
    parent[key] = any_value(random)


def _remove(_: Any, parent: Any, key: Any, random: Random) -> None:
    del parent[key]


def _rename(_: Any, parent: Any, key: Any, random: Random) -> None:
    if isinstance(parent, dict):
        parent[random.choice(("", "a", key + " ", key.upper(), "\ud800", "x" * 10_000))] = parent.pop(key)
    else:
        random.shuffle(parent)


def _add(_: Any, parent: Any, key: Any, random: Random) -> None:
    if isinstance(parent, dict):
        parent[random.choice(("a", "\x00", key + "_", "__proto__"))] = any_value(random)
    else:
        parent.insert(key, any_value(random))


def _copy(document: Any, parent: Any, key: Any, random: Random) -> None:
    """Another value of the document: of the wrong kind, yet of a plausible one."""
    value = document
    for step in _random_place(document, random):
        value = value[step]
    parent[key] = json.loads(json.dumps(value))


def _near(_: Any, parent: Any, key: Any, random: Random) -> None:
    """A value that a check may let through: a bit more, less or longer; else another name out of the same family."""
    value = parent[key]
    if isinstance(value, bool):
        parent[key] = not value
    elif isinstance(value, int):
        parent[key] = random.choice((value + 1, value - 1, value * 2, value // 2, -value, float(value), str(value)))
    elif isinstance(value, float):
        parent[key] = random.choice((-value, value * 1e30, value * 1e-30, 0.0, str(value)))
    elif isinstance(value, str):
        parent[key] = random.choice(
            (value + "x", value[:-1], value.upper(), value * 1000, list(value), "\u0301" + value)
        )
    elif isinstance(value, list):
        parent[key] = random.choice((value[:-1], value + value[:1], value * 50, value[::-1]))


def mutate(data: bytes, random: Random, structured: Callable[[bytes, Random], bytes] = mutate_json) -> bytes:
    """Mostly one change by `structured`, now and then a few, or changes of plain bytes."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = structured(data, random) if random.random() < 0.75 else mutate_bytes(data, random)
    return data

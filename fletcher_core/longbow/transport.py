"""How vectors travel: as 32-bit or 16-bit floats, the messages plain or compressed, and what the server makes of that.

In: the store's vectors, the two settings, a server's word on itself. Out: the wire's column and Arrow's write options,
or a refusal before anything is sent that the server could not search.
"""

from typing import get_args

import numpy as np
import pyarrow as pa

from fletcher_core.errors import ConfigError, LongbowRejected
from fletcher_core.setting_values import Compression, Transport

ELEMENTS: dict[Transport, pa.DataType] = {"fp32": pa.float32(), "fp16": pa.float16()}
SEARCHED_BY_EVERY_SERVER = ("float32",)
"""Longbow v0.1.2 stores float16 vectors, but its index leaves them out without a word."""

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_INFINITY = 0x7C00  # bits of float16's; those of a NaN are above


def check_settings(transport: str, compression: str | None) -> None:
    """Raises ConfigError, naming the setting and its values, for one that does not exist."""
    if transport not in get_args(Transport):
        raise ConfigError(
            f"Longbow transport: {transport!r} is neither 'fp32', which every server searches, nor 'fp16', which is "
            "half the bytes"
        )
    if compression is not None and compression not in get_args(Compression):
        raise ConfigError(f"Longbow compression: {compression!r} is none of None (no compression), 'lz4' and 'zstd'")
    if compression is not None and not pa.Codec.is_available(compression):
        raise ConfigError(
            f"Longbow compression: this pyarrow was built without {compression!r}; install pyarrow from PyPI or "
            "conda-forge, or leave compression out"
        )


def write_options(compression: Compression | None) -> pa.ipc.IpcWriteOptions:
    """Of the messages of a put: every buffer of a batch compressed on its own, or sent as it lies in memory."""
    return pa.ipc.IpcWriteOptions(compression=compression)


def check_searchable(transport: Transport, vector_types: tuple[str, ...], target: str) -> None:
    """Raises LongbowRejected when the server does not say that it searches vectors of this transport's type."""
    element = _element_name(transport)
    if element not in vector_types:
        raise LongbowRejected(
            f"Longbow at {target} cannot search {element} vectors, it would store them and find none (it searches "
            f"{', '.join(vector_types)}). Set transport='fp32', or deliver to the embedded server or to a Longbow that "
            f"names {element} in the 'vector_types' of its check_readiness answer"
        )


def check_unchanged(transport: Transport, held: str, dataset: str, target: str) -> None:
    """Raises LongbowRejected when a dataset holds vectors of another type than the transport's; '' is not known."""
    if held and held != _element_name(transport):
        before = next((name for name, kind in ELEMENTS.items() if _name(kind) == held), held)
        raise LongbowRejected(
            f"dataset {dataset!r} of Longbow at {target} holds {held} vectors, and a dataset has one type for ever: "
            f"transport={transport!r} cannot go on with it. Set transport={before!r} again, or change vector_type as "
            "well: that begins a new generation, which has a dataset of its own, from the vectors in the store"
        )


def wire_vectors(vectors: pa.ChunkedArray, keys: pa.ChunkedArray, transport: Transport) -> pa.ChunkedArray:
    """Vectors [rows, dim] of the store (float32 or float16, none null) in the element type of the transport.

    Without a copy where that is the type they have. `keys` name the rows: raises LongbowRejected for a row with an
    element that is beyond float16, as no vector of unit length has one, so that none ever arrives as infinity.
    """
    kind = pa.list_(pa.field("item", ELEMENTS[transport], nullable=True), vectors.type.list_size)
    if transport == "fp16" and vectors.type.value_type != pa.float16():
        return pa.chunked_array(_halved(vectors, keys, kind), type=kind)
    return vectors.cast(kind)


def _halved(vectors: pa.ChunkedArray, keys: pa.ChunkedArray, kind: pa.FixedSizeListType) -> list[pa.Array]:
    """Chunks of float16, each element the nearest one."""
    chunks, start = [], 0
    for chunk in vectors.chunks:
        numbers = chunk.flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore", under="ignore"):
            halves = numbers.astype(np.float16)
        magnitudes = halves.view(np.uint16) & 0x7FFF
        if magnitudes.max(initial=0) >= _INFINITY:  # a fifth of the time of np.isfinite, which halves are slow at
            place = int(np.argmax(magnitudes >= _INFINITY))
            key = keys[start + place // kind.list_size].as_py()
            raise LongbowRejected(
                f"row {key!r} has {numbers[place]:g} in its vector, which a float16 cannot hold (at most "
                f"{_FLOAT16_MAX:g}): set transport='fp32', or embed with normalize=True"
            )
        chunks.append(pa.FixedSizeListArray.from_arrays(pa.array(halves), type=kind))
        start += len(chunk)
    return chunks


def _element_name(transport: Transport) -> str:
    return _name(ELEMENTS[transport])


def _name(kind: pa.DataType) -> str:
    """As servers spell it: pyarrow says halffloat."""
    return {pa.float16(): "float16", pa.float32(): "float32"}[kind]

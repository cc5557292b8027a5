"""Attention over packed sequences of any lengths, without padding and without a score matrix in memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_kernels.kernel import LANES, Case, Dialect, Float64, Kernel, Launch, Static, at_least, mlx_type

# Query rows of a threadgroup: those of a matrix fragment, one in each SIMD-group, times the SIMD-groups.
TILE_ROWS: dict[Dialect, int] = {"metal": 32, "cuda": 64}
HEAD_DIMS = (32, 64, 128)


def _fragment_rows(dialect: Dialect, head_dim: int) -> int:
    """K_FRAG_M of the dialect."""
    return 8 if dialect == "metal" else 16 if head_dim > 64 else 32


def attention_tiles(cu_seqlens: npt.NDArray[np.integer], tile_rows: int) -> npt.NDArray[np.int32]:
    """int [n + 1] -> flat int32 of (first token, length, first query row, 0) for each tile of each sequence."""
    starts, lengths = cu_seqlens[:-1], np.diff(cu_seqlens)
    counts = -(-lengths // tile_rows)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    within = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    tiles = np.zeros((len(sequence), 4), dtype=np.int32)
    tiles[:, 0], tiles[:, 1], tiles[:, 2] = starts[sequence], lengths[sequence], within * tile_rows
    return at_least(tiles)  # a tile of length 0 has no work


def _plan(arrays: Sequence[Any], static: Static, dialect: Dialect) -> Launch:
    qk, qkv, tiles = arrays
    heads = int(static["heads"])
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    simd_groups = TILE_ROWS[dialect] // _fragment_rows(dialect, width // heads)
    return Launch(
        template=(
            ("T", mlx_type(qkv)),
            ("H", heads),
            ("D", width // heads),
            ("QK_PARTS", qk.shape[1] // width),
            ("SIMDS", simd_groups),
        ),
        threadgroups=(tiles.shape[0] // 4 * heads, 1),
        threads=simd_groups * LANES,
        outputs=(((tokens, width), mlx_type(qkv)),),
    )


def _supports(arrays: Sequence[Any], static: Static) -> bool:
    qkv = arrays[1]
    return qkv.shape[1] // 3 // int(static["heads"]) in HEAD_DIMS and mlx_type(qkv) != mx.float32


def _sequences(tiles: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """First token and length of each sequence of a tile list."""
    rows = tiles.reshape(-1, 4)
    rows = rows[(rows[:, 1] > 0) & (rows[:, 2] == 0)]
    return rows[:, 0], rows[:, 1]


def _fallback(arrays: Sequence[mx.array], static: Static) -> list[mx.array]:
    """Pad to [n, longest], MLX's own attention with a mask, and back."""
    qk, qkv, tiles = arrays
    heads = int(static["heads"])
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    dim = width // heads
    starts, lengths = _sequences(np.array(tiles))
    longest = int(lengths.max())
    offsets = np.arange(longest, dtype=np.int32)
    inside = offsets < lengths[:, None]
    take = mx.array(starts[:, None] + np.minimum(offsets, lengths[:, None] - 1))
    mask = mx.array(np.where(inside, 0.0, -30000.0).astype(np.float32))[:, None, None, :].astype(qkv.dtype)

    def part(source: mx.array, index: int) -> mx.array:  # -> [n, H, longest, D]
        rows = source[:, index * width : (index + 1) * width][take]
        return rows.reshape(len(starts), longest, heads, dim).transpose(0, 2, 1, 3)

    mixed = mx.fast.scaled_dot_product_attention(part(qk, 0), part(qk, 1), part(qkv, 2), scale=dim**-0.5, mask=mask)
    rows = mixed.transpose(0, 2, 1, 3).reshape(-1, width)
    back = np.zeros(tokens, dtype=np.int32)
    back[(starts[:, None] + offsets)[inside]] = np.flatnonzero(inside)
    return [rows[mx.array(back)]]


def _reference(arrays: Sequence[npt.NDArray[Any]], static: Static) -> list[Float64]:
    """NaN in rows that belong to no sequence: nobody reads them, and a kernel may leave them as they are."""
    qk, qkv, tiles = arrays
    heads = int(static["heads"])
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    out = np.full((tokens, width), np.nan)
    for start, length in zip(*_sequences(tiles), strict=True):
        rows = slice(start, start + length)
        q, k, v = (
            source[rows, index * width : (index + 1) * width].reshape(length, heads, -1).transpose(1, 0, 2)
            for source, index in ((qk, 0), (qk, 1), (qkv, 2))
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
        out[rows] = mixed.transpose(1, 0, 2).reshape(length, width)
    return [out]


def _cases(dialect: Dialect) -> Iterator[Case]:
    random = np.random.default_rng(2)
    for heads, dim, lengths, rotated in (
        (2, 32, (5, 33, 64, 1, 100, 17, 36), False),
        (2, 64, (1, 31, 32, 65), True),
        (1, 64, (2,), False),
        (1, 128, (40, 3, 70), False),
    ):
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        tokens = -(-int(cu_seqlens[-1]) // 32) * 32
        qkv = random.normal(size=(tokens, 3 * heads * dim))
        qk = random.normal(size=(tokens, 2 * heads * dim)) if rotated else qkv
        name = f"{heads} heads of {dim}, {len(lengths)} sequences{', rotated' if rotated else ''}"
        yield Case(name, (qk, qkv, attention_tiles(cu_seqlens, TILE_ROWS[dialect])), {"heads": heads})
    qkv = random.normal(size=(64, 3 * 32)) * 3.0  # scores far apart: the running maximum must hold
    yield Case("large scores", (qkv, qkv, attention_tiles(np.array([0, 64]), TILE_ROWS[dialect])), {"heads": 1})


ATTENTION = Kernel(
    name="attention",
    bodies=("attention",),
    inputs=("qk", "qkv", "tiles"),
    outputs=("out",),
    plan=_plan,
    fallback=_fallback,
    reference=_reference,
    cases=_cases,
    supports=_supports,
    tolerance={"float16": 2e-3, "bfloat16": 1.2e-2},
    floats=("float16", "bfloat16"),
)

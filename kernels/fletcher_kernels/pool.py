"""Token vectors to one vector a sequence, normalized, looked at for soundness and cast, in one pass."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_kernels.kernel import LANES, Case, Dialect, Float64, Kernel, Launch, Static, at_least, mlx_type

POOLING = {"mean": 0, "cls": 1, "last": 2}
# Of a threadgroup: the fewer for wide vectors, since the sums of all of them lie in 32 KB of shared memory.
_SIMD_GROUPS = (8, 4)


def _simd_groups(dim: int) -> int:
    """The most whose sums and norms fit; 0 if none do."""
    return next((simds for simds in _SIMD_GROUPS if 4 * simds * (dim + 8) <= 32 * 1024), 0)


def _plan(arrays: Sequence[Any], static: Static, _: Dialect) -> Launch:
    x = arrays[0]
    sequences, dim = int(static["sequences"]), int(static["dimension"])
    simds = _simd_groups(dim)
    return Launch(
        template=(
            ("T", mlx_type(x)),
            ("O", mx.float32),
            ("D", x.shape[1]),
            ("DIM", dim),
            ("POOLING", int(static["pooling"])),
            ("NORMALIZE", bool(static["normalize"])),
            ("SIMDS", simds),
        ),
        threadgroups=(sequences, 1),
        threads=simds * LANES,
        outputs=(((sequences, dim), mx.float32), ((sequences,), mx.int32)),
    )


def _supports(arrays: Sequence[Any], static: Static) -> bool:
    dim = int(static["dimension"])
    return dim % 4 == 0 and _simd_groups(dim) > 0 and arrays[0].shape[1] % 4 == 0


def _fallback(arrays: Sequence[mx.array], static: Static) -> list[mx.array]:
    x, cu_seqlens = arrays
    sequences, dim = int(static["sequences"]), int(static["dimension"])
    begin, end = cu_seqlens[:sequences], cu_seqlens[1 : sequences + 1]
    x = x[:, :dim].astype(mx.float32)
    if static["pooling"] == POOLING["mean"]:
        # A segment sum by scatter: differences of running sums would cancel.
        owner = np.repeat(np.arange(sequences), np.diff(np.array(cu_seqlens)[: sequences + 1]))
        zeros: Any = mx.zeros((sequences, dim))
        total = zeros.at[mx.array(owner)].add(x[: len(owner)])
        pooled = total / (end - begin)[:, None]
    else:
        pooled = x[begin if static["pooling"] == POOLING["cls"] else end - 1]
    squares = (pooled * pooled).sum(axis=-1)
    sound = mx.isfinite(squares) & (squares > 0)
    if static["normalize"]:
        pooled = pooled * mx.where(sound, mx.rsqrt(squares), 1.0)[:, None]
    return [pooled, mx.where(sound, 0, 1).astype(mx.int32)]


def _reference(arrays: Sequence[npt.NDArray[Any]], static: Static) -> list[Float64]:
    x, cu_seqlens = arrays
    sequences, dim, normalize = int(static["sequences"]), int(static["dimension"]), bool(static["normalize"])
    parts = [x[cu_seqlens[i] : cu_seqlens[i + 1], :dim] for i in range(sequences)]
    if static["pooling"] == POOLING["mean"]:
        pooled = np.stack([part.mean(axis=0) for part in parts])
    else:
        pooled = np.stack([part[0 if static["pooling"] == POOLING["cls"] else -1] for part in parts])
    squares = (pooled**2).sum(axis=1)
    sound = np.isfinite(squares) & (squares > 0.0)
    if normalize:
        pooled = pooled * np.where(sound, 1.0 / np.sqrt(np.where(sound, squares, 1.0)), 1.0)[:, None]
    return [pooled, (~sound).astype(np.float64)]


def _cases(_: Dialect) -> Iterator[Case]:
    random = np.random.default_rng(5)
    mixed, few = (5, 33, 1, 64, 9), (3, 9)
    for lengths, pooling, width, dim, normalize in (
        (mixed, "mean", 384, 384, True),
        (mixed, "mean", 768, 256, True),
        (mixed, "cls", 96, 96, True),
        (mixed, "last", 128, 64, False),
        (few, "mean", 1024, 1024, True),
    ):
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        x = random.normal(size=(int(cu_seqlens[-1]) + 8, width))
        static = {
            "sequences": len(lengths),
            "dimension": dim,
            "pooling": POOLING[pooling],
            "normalize": normalize,
        }
        yield Case(f"{pooling} {width} to {dim}", (x, at_least(cu_seqlens)), static)
    x = random.normal(size=(24, 128))
    x[3:6] = 0.0  # no length
    x[9, 5] = np.inf
    x[15, 7] = np.nan
    static = {"sequences": 5, "dimension": 128, "pooling": 0, "normalize": True}
    yield Case("unsound rows", (x, at_least(np.array([0, 3, 6, 12, 20, 24], dtype=np.int32))), static)


POOL = Kernel(
    name="pool",
    bodies=("pool",),
    inputs=("x", "cu_seqlens"),
    outputs=("out", "flags"),
    plan=_plan,
    fallback=_fallback,
    reference=_reference,
    cases=_cases,
    supports=_supports,
    tolerance={"float16": 1e-5, "bfloat16": 1e-5, "float32": 1e-5},
)

"""Rotary positions for packed tokens: each token brings its own position."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_kernels.kernel import THREADS, Case, Dialect, Float64, Kernel, Launch, Static, mlx_type


def _work(tokens: int, width: int) -> int:
    """Threads: one for four pairs of query or key."""
    return tokens * 2 * width // 8


def _plan(arrays: Sequence[Any], static: Static, _: Dialect) -> Launch:
    qkv = arrays[0]
    heads = int(static["heads"])
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    dtype = mlx_type(qkv)
    return Launch(
        template=(("T", dtype), ("H", heads), ("D", width // heads), ("THREADS", THREADS)),
        threadgroups=(_work(tokens, width) // THREADS, 1),
        threads=THREADS,
        outputs=(((tokens, 2 * width), dtype),),
    )


def _supports(arrays: Sequence[Any], static: Static) -> bool:
    tokens, width = arrays[0].shape[0], arrays[0].shape[1] // 3
    return bool(width // int(static["heads"]) % 8 == 0 and _work(tokens, width) % THREADS == 0)


def _fallback(arrays: Sequence[mx.array], static: Static) -> list[mx.array]:
    qkv, positions, cosines, sines = arrays
    heads = int(static["heads"])
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    half = width // heads // 2
    x = qkv[:, : 2 * width].reshape(tokens, 2 * heads, 2 * half).astype(mx.float32)
    cosine, sine = cosines[positions][:, None], sines[positions][:, None]
    left, right = x[..., :half], x[..., half:]
    turned = mx.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)
    return [turned.reshape(tokens, 2 * width).astype(qkv.dtype)]


def _reference(arrays: Sequence[npt.NDArray[Any]], static: Static) -> list[Float64]:
    qkv, positions, cosines, sines = arrays
    heads = int(static["heads"])
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    half = width // heads // 2
    x = qkv[:, : 2 * width].reshape(tokens, 2 * heads, 2 * half)
    cosine, sine = cosines[positions][:, None], sines[positions][:, None]
    left, right = x[..., :half], x[..., half:]
    turned = np.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)
    return [turned.reshape(tokens, 2 * width)]


def _cases(_: Dialect) -> Iterator[Case]:
    random = np.random.default_rng(3)
    for tokens, heads, dim in ((32, 2, 64), (32, 3, 32), (64, 1, 128)):
        angles = np.arange(40)[:, None] * 1000.0 ** -(np.arange(dim // 2) / (dim // 2))
        yield Case(
            f"{tokens} tokens, {heads} heads of {dim}",
            (
                random.normal(size=(tokens, 3 * heads * dim)),
                random.integers(0, 40, tokens).astype(np.int32),
                np.cos(angles).astype(np.float32),
                np.sin(angles).astype(np.float32),
            ),
            {"heads": heads},
        )


ROPE = Kernel(
    name="rope",
    bodies=("rope",),
    inputs=("qkv", "positions", "cosines", "sines"),
    outputs=("out",),
    plan=_plan,
    fallback=_fallback,
    reference=_reference,
    cases=_cases,
    supports=_supports,
    tolerance={"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6},
)

"""LayerNorm over what flows into it: a product and its residual, or the embedding tables."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_kernels.kernel import (
    LANES,
    SMALLEST_INPUT,
    Case,
    Dialect,
    Float64,
    Kernel,
    Launch,
    Static,
    at_least,
    mlx_type,
)

# Rows, one SIMD-group each, of a threadgroup; token counts are multiples of it.
ROWS = 8
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-5}


def epsilon_array(epsilon: float) -> npt.NDArray[np.float32]:
    """The kernels' `params`: epsilon first."""
    return np.full(SMALLEST_INPUT, epsilon, dtype=np.float32)


def sequences_array(count: int) -> npt.NDArray[np.int32]:
    """`embed_norm`'s number of sequences."""
    return np.full(SMALLEST_INPUT, count, dtype=np.int32)


def _positions(cu_seqlens: npt.NDArray[np.integer], sequences: int) -> npt.NDArray[np.int32]:
    """Place of each token in its sequence."""
    starts, ends = cu_seqlens[:sequences], cu_seqlens[1 : sequences + 1]
    tokens = np.arange(ends[-1], dtype=np.int32)
    return tokens - np.repeat(starts, ends - starts).astype(np.int32)


def _plan(rows: int, width: int, x: Any, flag: tuple[str, bool], *, wide: bool) -> Launch:
    out = mx.float32 if wide else mlx_type(x)
    return Launch(
        # MLX tells CUDA kernels apart by name and template arguments: the output's type must be one of them.
        template=(("T", mlx_type(x)), ("O", out), ("D", width), ("ROWS", ROWS), flag),
        threadgroups=(rows // ROWS, 1),
        threads=ROWS * LANES,
        outputs=(((rows, width), out),),
    )


def _plan_add(arrays: Sequence[Any], static: Static, _: Dialect) -> Launch:
    rows, width = arrays[0].shape
    return _plan(rows, width, arrays[0], ("HAS_BIAS", bool(static["has_bias"])), wide=bool(static.get("wide")))


def _plan_embed(arrays: Sequence[Any], static: Static, _: Dialect) -> Launch:
    ids, words = arrays[0], arrays[3]
    plan = _plan(ids.shape[0], words.shape[1], words, ("HAS_PLACES", bool(static["has_places"])), wide=False)
    return replace(plan, outputs=(*plan.outputs, ((ids.shape[0],), mx.int32)))


def _covers(rows: int, width: int) -> bool:
    return rows % ROWS == 0 and width % 4 == 0 and SMALLEST_INPUT <= width <= 2048


def _supports_add(arrays: Sequence[Any], _: Static) -> bool:
    return _covers(*arrays[0].shape)


def _supports_embed(arrays: Sequence[Any], _: Static) -> bool:
    return _covers(arrays[0].shape[0], arrays[3].shape[1])


def _norm(x: mx.array, weight: mx.array, shift: mx.array, params: mx.array, dtype: mx.Dtype) -> mx.array:
    # The epsilon as an array: a Python number would have to be read back from the device.
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return (centred * mx.rsqrt(variance + params[0]) * weight + shift).astype(dtype)


def _add_fallback(arrays: Sequence[mx.array], static: Static) -> list[mx.array]:
    x, residual, bias, weight, shift, params = arrays
    total = x.astype(mx.float32) + residual
    if static["has_bias"]:
        total = total + bias
    return [_norm(total, weight, shift, params, mx.float32 if static.get("wide") else x.dtype)]


def _embed_fallback(arrays: Sequence[mx.array], static: Static) -> list[mx.array]:
    ids, cu_seqlens, sequences, words, places, weight, shift, params = arrays
    positions = mx.array(_positions(np.array(cu_seqlens), int(np.array(sequences)[0])))
    total = words[ids].astype(mx.float32)
    if static["has_places"]:
        total = total + places[positions]
    return [_norm(total, weight, shift, params, words.dtype), positions]


def _norm64(x: Float64, weight: Float64, shift: Float64, epsilon: float) -> Float64:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normed: Float64 = centred / np.sqrt(variance + epsilon) * weight + shift
    return normed


def _add_reference(arrays: Sequence[npt.NDArray[Any]], static: Static) -> list[Float64]:
    x, residual, bias, weight, shift, params = arrays
    total = x + residual + (bias if static["has_bias"] else 0.0)
    return [_norm64(total, weight, shift, float(params[0]))]


def _embed_reference(arrays: Sequence[npt.NDArray[Any]], static: Static) -> list[Float64]:
    ids, cu_seqlens, sequences, words, places, weight, shift, params = arrays
    positions = _positions(cu_seqlens, int(sequences[0]))
    total = words[ids] + (places[positions] if static["has_places"] else 0.0)
    return [_norm64(total, weight, shift, float(params[0])), positions.astype(np.float64)]


def _add_cases(_: Dialect) -> Iterator[Case]:
    random = np.random.default_rng(0)
    for rows, width, has_bias in ((ROWS, 128, True), (3 * ROWS, 384, True), (ROWS, 768, False), (2 * ROWS, 96, True)):
        x, residual = random.normal(size=(2, rows, width))
        bias, weight, shift = random.normal(size=(3, width))
        yield Case(
            f"{rows}x{width}{'+bias' if has_bias else ''}",
            (x, residual, bias, weight, shift, epsilon_array(1e-12)),
            {"has_bias": has_bias, "wide": rows == 3 * ROWS},
        )
    x = random.normal(size=(ROWS, 384)) * 0.5 + 8.0  # a row far from zero: where one-pass variances cancel
    zeros = np.zeros(384)
    weight, shift = random.normal(size=(2, 384))
    yield Case("offset", (x, x * 0.0, zeros, weight, shift, epsilon_array(1e-5)), {"has_bias": True})


def _embed_cases(_: Dialect) -> Iterator[Case]:
    random = np.random.default_rng(1)
    for lengths, width, has_places in (((5, 1, 10, 8), 384, True), ((8,), 768, False), ((1,) * 16, 96, True)):
        rows = sum(lengths)
        ids = random.integers(0, 50, rows).astype(np.int32)
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        words, places = random.normal(size=(50, width)), random.normal(size=(20, width))
        weight, shift = random.normal(size=(2, width))
        sizes = at_least(cu_seqlens), sequences_array(len(lengths))
        yield Case(
            f"{rows}x{width}{'+places' if has_places else ''}",
            (ids, *sizes, words, places, weight, shift, epsilon_array(1e-12)),
            {"has_places": has_places},
        )


ADD_NORM = Kernel(
    name="add_norm",
    bodies=("add_norm", "layer_norm"),
    inputs=("x", "residual", "bias", "weight", "shift", "params"),
    outputs=("out",),
    plan=_plan_add,
    fallback=_add_fallback,
    reference=_add_reference,
    cases=_add_cases,
    supports=_supports_add,
    tolerance=TOLERANCE,
)

EMBED_NORM = Kernel(
    name="embed_norm",
    bodies=("embed_norm", "layer_norm"),
    inputs=("ids", "cu_seqlens", "sequences", "words", "places", "weight", "shift", "params"),
    outputs=("out", "positions"),
    plan=_plan_embed,
    fallback=_embed_fallback,
    reference=_embed_reference,
    cases=_embed_cases,
    supports=_supports_embed,
    tolerance=TOLERANCE,
)

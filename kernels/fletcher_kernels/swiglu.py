"""The gated activation between the two products of an MLP, read straight from the first one's halves."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_kernels.kernel import THREADS, Case, Dialect, Float64, Kernel, Launch, Static, mlx_type


def _work(tokens: int, columns: int) -> int:
    """Threads: one for eight columns of the output."""
    return tokens * columns // 8


def _plan(arrays: Sequence[Any], _: Static, __: Dialect) -> Launch:
    gate_up = arrays[0]
    tokens, columns = gate_up.shape[0], gate_up.shape[1] // 2
    dtype = mlx_type(gate_up)
    return Launch(
        template=(("T", dtype), ("F", columns), ("THREADS", THREADS)),
        threadgroups=(_work(tokens, columns) // THREADS, 1),
        threads=THREADS,
        outputs=(((tokens, columns), dtype),),
    )


def _supports(arrays: Sequence[Any], _: Static) -> bool:
    tokens, columns = arrays[0].shape[0], arrays[0].shape[1] // 2
    return bool(columns % 8 == 0 and _work(tokens, columns) % THREADS == 0)


def _fallback(arrays: Sequence[mx.array], _: Static) -> list[mx.array]:
    gate, up = mx.split(arrays[0].astype(mx.float32), 2, axis=-1)
    return [(gate * mx.sigmoid(gate) * up).astype(arrays[0].dtype)]


def _reference(arrays: Sequence[npt.NDArray[Any]], _: Static) -> list[Float64]:
    gate, up = np.split(arrays[0], 2, axis=-1)
    return [gate / (1.0 + np.exp(-gate)) * up]


def _cases(_: Dialect) -> Iterator[Case]:
    random = np.random.default_rng(4)
    for tokens, columns in ((32, 256), (64, 96), (40, 3072)):
        gate_up = random.normal(size=(tokens, 2 * columns)) * 3.0
        yield Case(f"{tokens}x{columns}", (gate_up,), {})


SWIGLU = Kernel(
    name="swiglu",
    bodies=("swiglu",),
    inputs=("gate_up",),
    outputs=("out",),
    plan=_plan,
    fallback=_fallback,
    reference=_reference,
    cases=_cases,
    supports=_supports,
    tolerance={"float16": 1e-3, "bfloat16": 8e-3, "float32": 2e-6},
)

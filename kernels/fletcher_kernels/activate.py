"""The activation of an MLP without a gate, elementwise, where no product ends in it."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_kernels import gemm_act
from fletcher_kernels.kernel import THREADS, Case, Dialect, Float64, Kernel, Launch, Static, mlx_type

# In the order of the kernel's KIND.
KINDS: tuple[gemm_act.Activation, ...] = ("gelu", "gelu_tanh", "relu", "silu")


def _plan(arrays: Sequence[Any], static: Static, _: Dialect) -> Launch:
    x = arrays[0]
    return Launch(
        template=(("T", mlx_type(x)), ("KIND", int(static["kind"])), ("THREADS", THREADS)),
        threadgroups=(x.size // (8 * THREADS), 1),
        threads=THREADS,
        outputs=((x.shape, mlx_type(x)),),
    )


def _supports(arrays: Sequence[Any], _: Static) -> bool:
    return bool(arrays[0].size % (8 * THREADS) == 0)


def _fallback(arrays: Sequence[mx.array], static: Static) -> list[mx.array]:
    return [gemm_act.activate(arrays[0], KINDS[static["kind"]])]


def _reference(arrays: Sequence[npt.NDArray[Any]], static: Static) -> list[Float64]:
    return [gemm_act.activate_reference(arrays[0], KINDS[static["kind"]])]


def _cases(_: Dialect) -> Iterator[Case]:
    random = np.random.default_rng(6)
    for kind, name in enumerate(KINDS):
        yield Case(f"{name} 64x96", (random.normal(size=(64, 96)) * 3.0,), {"kind": kind})
    x = random.normal(size=(8, 256)) * 100.0
    x[0, :9] = [65504.0, -65504.0, 1e4, -1e4, 0.0, -0.0, np.inf, -np.inf, np.nan]
    for kind, name in enumerate(KINDS):
        yield Case(f"{name} of extremes", (x,), {"kind": kind})


ACTIVATE = Kernel(
    name="activate",
    bodies=("activate",),
    inputs=("x",),
    outputs=("out",),
    plan=_plan,
    fallback=_fallback,
    reference=_reference,
    cases=_cases,
    supports=_supports,
    # GELU's p is off by 3.1e-6, wherever that is.
    tolerance={"float16": 1e-3, "bfloat16": 8e-3, "float32": 5e-6},
)

"""Every GPU kernel, and MLX's own matrix product, against NumPy: what `fletcher selftest` prints about the device.

All of it on the thread that calls, which should be one that does nothing else with MLX.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from fletcher_kernels import KERNELS
from fletcher_kernels.build import launch
from fletcher_kernels.kernel import Case, Dialect, Kernel, float64, on_device
from fletcher_kernels.selection import KernelSet, relative_error, switched_off

from fletcher_core.engines.mlx.device import gpu_dialect

# Plain operations round to the type under test more often than a kernel does.
PLAIN_SLACK = 3.0
# (M, K, N) of the products; MLX issue 3585: silently wrong for M > 8.
PRODUCTS = ((64, 384, 384), (1024, 1024, 1024))
# Of the largest value. CUDA computes float32 products in TF32.
_PRODUCT_TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 5e-3}
_REPEATS = 5
_LONG_ENOUGH = 0.2  # seconds of one run that need no repetition
_PROCESSES = 12  # at most; each holds some 500 MB of an NVIDIA GPU


@dataclass(frozen=True)
class Check:
    """One kernel on one case in one type, or one product.

    `error` is the kernel's and `plain_error` the plain operations' largest difference from float64, `difference` that
    between the two, all in units of the largest value; `seconds` the best of some runs; `problem` is empty if all is
    well, `replaced` says why the engine would run plain operations in its stead, empty if it would not.
    """

    name: str
    case: str
    dtype: str
    error: float
    plain_error: float
    difference: float
    seconds: float
    plain_seconds: float
    problem: str
    replaced: str = ""


def check_kernels(dialect: Dialect | None) -> Iterator[list[Check]]:
    """The checks of each kernel and case, one a type; without a dialect of the plain operations alone.

    MLX compiles CUDA kernels anew in each process, 1 to 2 s each: there the checks run in processes side by side.
    """
    todo = [(kernel.name, at) for kernel in KERNELS.values() for at in range(len(_cases(kernel, dialect)))]
    if dialect == "cuda":
        processes = min(_PROCESSES, os.cpu_count() or 1)
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_check_on_gpu, *zip(*todo, strict=True))
    else:
        for name, at in todo:
            yield _check_case(name, at, dialect)


def _cases(kernel: Kernel, dialect: Dialect | None) -> list[Case]:
    return list(kernel.cases(dialect or "metal"))


def _check_on_gpu(name: str, at: int) -> list[Check]:
    return _check_case(name, at, gpu_dialect())


def _check_case(name: str, at: int, dialect: Dialect | None) -> list[Check]:
    kernel = KERNELS[name]
    return [check_kernel(kernel, _cases(kernel, dialect)[at], dtype, dialect) for dtype in kernel.floats]


def check_kernel(kernel: Kernel, case: Case, dtype: str, dialect: Dialect | None) -> Check:
    """A failure to compile or to run is a problem of the check, not an error."""
    arrays = on_device(case.arrays, dtype)
    with np.errstate(all="ignore"):  # infinities among the inputs are meant
        expected = kernel.reference([float64(array) for array in arrays], case.static)
    plain, plain_seconds, plain_problem = _timed(lambda: kernel.fallback(arrays, case.static))
    outputs, seconds, problem = plain, plain_seconds, ""
    if dialect is not None:
        outputs, seconds, problem = _timed(lambda: launch(kernel, arrays, case.static, dialect))
    error, plain_error = _worst(outputs, expected), _worst(plain, expected)
    difference = _worst(
        outputs, [np.where(np.isnan(e), np.nan, float64(p)) for p, e in zip(plain, expected, strict=False)]
    )
    allowed = kernel.tolerance[dtype]
    if plain_problem:
        problem = f"plain operations failed: {plain_problem}"
    elif not plain_error <= PLAIN_SLACK * allowed:
        problem = f"plain operations are off by {plain_error:.1e}, {PLAIN_SLACK * allowed:.1e} is allowed"
    elif dialect is not None and not problem and not error <= allowed:
        problem = f"is off by {error:.1e}, {allowed:.1e} is allowed"
    replaced = "" if dialect is None else _replaced(kernel, arrays, case, dialect)
    return Check(
        kernel.name, case.name, dtype, error, plain_error, difference, seconds, plain_seconds, problem, replaced
    )


def _replaced(kernel: Kernel, arrays: list[mx.array], case: Case, dialect: Dialect) -> str:
    """Why the engine would replace the kernel after its own check on these inputs; empty if it would not."""
    kernels = KernelSet(dialect, switched_off())
    mx.eval(kernels.run(kernel.name, arrays, **case.static))
    return kernels.replaced.get(kernel.name, "")


def check_products(sizes: tuple[tuple[int, int, int], ...]) -> Iterator[Check]:
    """MLX's x @ weight^T + bias, as the encoder uses it, against NumPy."""
    random = np.random.default_rng(0)
    for m, k, n in sizes:
        operands = (random.normal(size=n), random.normal(size=(m, k)), random.normal(size=(n, k)))
        for dtype, allowed in _PRODUCT_TOLERANCE.items():
            yield _check_product(f"{m} x {k} x {n}", on_device(operands, dtype), dtype, allowed)


def _check_product(case: str, operands: list[mx.array], dtype: str, allowed: float) -> Check:
    bias, x, weight = operands
    outputs, seconds, problem = _timed(lambda: [mx.addmm(bias, x, weight.T)])
    error = _worst(outputs, [float64(x) @ float64(weight).T + float64(bias)])
    if not problem and not error <= allowed:
        problem = f"is off by {error:.1e}, {allowed:.1e} is allowed"
    return Check("product", case, dtype, error, error, 0.0, seconds, seconds, problem)


def device_lines() -> list[str]:
    """What MLX says of the default device."""
    info: dict[str, Any] = dict(mx.device_info())
    return [f"{key}={value}" for key, value in sorted(info.items())]


def _worst(got: Sequence[mx.array], wanted: Sequence[npt.NDArray[Any]]) -> float:
    """The largest relative error over all outputs; NaN without any."""
    return max(
        (relative_error(float64(one), other) for one, other in zip(got, wanted, strict=False)), default=float("nan")
    )


def _timed(work: Callable[[], list[mx.array]]) -> tuple[list[mx.array], float, str]:
    """What `work` makes, the seconds of its fastest run, and "" or why it failed."""
    try:
        outputs = work()
        mx.eval(outputs)
        best = float("inf")
        for _ in range(_REPEATS):
            started = time.perf_counter()
            mx.eval(work())
            seconds = time.perf_counter() - started
            best = min(best, seconds)
            if seconds > _LONG_ENOUGH:
                break
    except (RuntimeError, ValueError) as error:  # what MLX raises for a failed compilation or launch
        lines = str(error).strip().splitlines()
        return [], float("nan"), lines[0][:200] if lines else type(error).__name__
    return outputs, best, ""

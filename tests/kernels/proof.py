"""Proves a kernel's Metal text on one case: it compiles, runs in every order of its threads, and is right.

One function for honest kernels and for those with a seeded fault: `prove` returns figures or raises what it found.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from emulator import Build, Schedule, capture, compile_text, unavailable
from emulator.capture import Output
from fletcher_kernels import KERNELS
from fletcher_kernels.build import header, source
from fletcher_kernels.kernel import Case, Kernel, Launch
from fletcher_kernels.selection import relative_error

Array = npt.NDArray[Any]

_DTYPES: dict[mx.Dtype, np.dtype[Any]] = {
    mx.float16: np.dtype(np.float16),
    mx.bfloat16: np.dtype(ml_dtypes.bfloat16),
    mx.float32: np.dtype(np.float32),
    mx.int32: np.dtype(np.int32),
}


class Wrong(AssertionError):
    """The output differs from float64 by more than the kernel's tolerance."""


class Disagreement(AssertionError):
    """The order of the threads changes the output: there is a race."""


@dataclass(frozen=True)
class Text:
    """A kernel's two parts in the Metal dialect, as they are or with a fault."""

    header: str
    source: str

    @classmethod
    def of(cls, kernel: Kernel) -> "Text":
        return cls(header("metal"), source(kernel, "metal"))


@dataclass(frozen=True)
class Proof:
    """What a proof measured: the largest error in the reference's largest magnitude, and the time of all schedules."""

    error: float
    seconds: float


@cache
def metal_cases(name: str) -> tuple[Case, ...]:
    return tuple(KERNELS[name].cases("metal"))


def variants() -> Iterator[tuple[Kernel, Case, str]]:
    """Every kernel with every case in every type of its own."""
    for kernel in KERNELS.values():
        for case in metal_cases(kernel.name):
            for dtype in kernel.floats:
                yield kernel, case, dtype


def typed(case: Case, dtype: str) -> list[Array]:
    """The case's arrays, float64 in the type under test."""
    wanted = _DTYPES[getattr(mx, dtype)]
    return [array.astype(wanted) if array.dtype == np.float64 else array for array in case.arrays]


def expected(kernel: Kernel, arrays: Sequence[Array], case: Case) -> list[npt.NDArray[np.float64]]:
    """The reference on what the types under test hold. Infinities and NaN among the inputs are meant."""
    wide = [array if array.dtype.kind in "iu" else array.astype(np.float64) for array in arrays]
    with np.errstate(all="ignore"):
        return kernel.reference(wide, case.static)


def metal_text(kernel: Kernel, arrays: Sequence[Array], plan: Launch, text: Text | None = None) -> str:
    """What MLX would hand to Apple's compiler."""
    text = text or Text.of(kernel)
    inputs = dict(zip(kernel.inputs, arrays, strict=True))
    return capture(kernel.name, text.header, text.source, inputs, _outputs(kernel, plan), plan.template)


def prove(kernel: Kernel, case: Case, dtype: str, build: Build, text: Text | None = None) -> Proof:
    """Compile and run on all schedules, between guard pages, and compare with float64. Skips without the compiler.

    Raises:
        EmulatorError: it does not compile (`CompileError`), or Metal would refuse it or run it wrongly.
        Disagreement: two schedules give different bits.
        Wrong: it is not what the reference says.
    """
    reason = unavailable(build)
    if reason is not None:
        pytest.skip(f"build {build.value}: {reason}")
    arrays = typed(case, dtype)
    plan = kernel.plan(arrays, case.static, "metal")
    compiled = compile_text(metal_text(kernel, arrays, plan, text), build)
    inputs, outputs = dict(zip(kernel.inputs, arrays, strict=True)), _outputs(kernel, plan)
    began = time.perf_counter()
    runs = {
        schedule: compiled.run(inputs, outputs, plan.grid, (plan.threads, 1, 1), schedule=schedule)
        for schedule in Schedule
    }
    seconds = time.perf_counter() - began
    first = runs[Schedule.FORWARD]
    for schedule, run in runs.items():
        for name, one, other in zip(kernel.outputs, first, run, strict=True):
            if one.tobytes() != other.tobytes():
                raise Disagreement(f"{kernel.name}, {case.name}: {name!r} is another in schedule {schedule.name}")
    error = 0.0
    for name, got, wanted in zip(kernel.outputs, first, expected(kernel, arrays, case), strict=True):
        difference = relative_error(got, wanted)
        if not difference <= kernel.tolerance[dtype]:
            raise Wrong(f"{kernel.name}, {case.name}, {dtype}: {name!r} is off by {difference:.2g}")
        error = max(error, difference)
    return Proof(error, seconds)


def _outputs(kernel: Kernel, plan: Launch) -> dict[str, Output]:
    return {name: (shape, _DTYPES[dtype]) for name, (shape, dtype) in zip(kernel.outputs, plan.outputs, strict=True)}

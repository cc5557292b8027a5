"""Which kernels run and which are replaced by plain MLX operations: decided by checking each where it first runs."""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_kernels.build import launch
from fletcher_kernels.kernel import Dialect, Kernel, Static, float64, type_name
from fletcher_kernels.registry import KERNELS

# The product with its activation: CUDA only, with weights of its own layout, so it has no `Kernel` of the dialect.
FUSED = "gemm_act"
KERNEL_NAMES = (*KERNELS, FUSED)
# Tests and ablations leave kernels out by name, with commas.
OFF = "FLETCHER_KERNELS_OFF"
_LOG = logging.getLogger(__name__)

# Real weights are less well behaved than the test cases that the tolerances are for.
_SLACK = 3.0


class KernelSet:
    """The kernels of one device. One thread at a time.

    Args:
        dialect: of the device; None runs plain MLX operations only (a CPU).
        off: names of kernels to leave out.

    Attributes:
        replaced: kernel name -> why plain MLX operations stand in for it.
        uncovered: names of kernels that gave way to plain MLX operations at least once, for sizes or a type that they
            do not cover; they still run for others.
    """

    def __init__(self, dialect: Dialect | None, off: Collection[str] = ()):
        if unknown := sorted(set(off) - set(KERNEL_NAMES)):
            raise ValueError(f"there are no kernels {', '.join(unknown)}; known are {', '.join(KERNEL_NAMES)}")
        self.dialect = dialect
        self.replaced: dict[str, str] = dict.fromkeys(off, "switched off")
        self.uncovered: set[str] = set()
        self._checked: set[tuple[Any, ...]] = set()
        self._told: set[str] = set()  # what the log says of sizes that are not covered

    def run(self, name: str, arrays: Sequence[mx.array], **static: int | bool) -> list[mx.array]:
        """Outputs of the kernel `name`, or of its fallback where it is replaced or does not cover the sizes.

        A variant that runs for the first time is checked against float64 on these very inputs; a kernel that does
        not compile, fails or differs is replaced from then on, with a warning in the log.
        """
        kernel = KERNELS[name]
        if self.dialect is None or name in self.replaced:
            return kernel.fallback(arrays, static)
        if not kernel.supports(arrays, static):
            self._tell_uncovered(kernel, arrays, static, self.dialect)
            return kernel.fallback(arrays, static)
        plan = kernel.plan(arrays, static, self.dialect)
        variant = (name, plan.template)
        if variant in self._checked:
            return launch(kernel, arrays, static, self.dialect, plan)
        problem, outputs = self._check(kernel, arrays, static, self.dialect)
        self._judge(name, variant, problem)
        return outputs

    def admit(self, name: str, variant: tuple[Any, ...], check: Callable[[], str]) -> bool:
        """Whether a kernel that is launched elsewhere may run: `check` says what is wrong with it, the first time."""
        if name not in self.replaced and (name, *variant) not in self._checked:
            try:
                problem = check()
            except (RuntimeError, ValueError) as error:
                problem = _first_line(error)
            self._judge(name, (name, *variant), problem)
        return name not in self.replaced

    def _tell_uncovered(self, kernel: Kernel, arrays: Sequence[mx.array], static: Static, dialect: Dialect) -> None:
        """Log it once a variant: template arguments do not change with the batch."""
        self.uncovered.add(kernel.name)
        sizes = ", ".join(f"{key}={_short(value)}" for key, value in kernel.plan(arrays, static, dialect).template)
        message = f"GPU kernel {kernel.name} does not cover these sizes ({sizes}): plain MLX operations run instead"
        if message not in self._told:
            self._told.add(message)
            _LOG.info("%s", message)

    def _judge(self, name: str, variant: tuple[Any, ...], problem: str) -> None:
        self._checked.add(variant)
        if problem:
            self.replaced[name] = problem
            _LOG.warning("GPU kernel %s is replaced by plain MLX operations: %s", name, problem)

    def _check(
        self, kernel: Kernel, arrays: Sequence[mx.array], static: Static, dialect: Dialect
    ) -> tuple[str, list[mx.array]]:
        mx.eval(arrays)
        try:
            outputs = launch(kernel, arrays, static, dialect)
            mx.eval(outputs)
        except (RuntimeError, ValueError) as error:  # what MLX raises for a failed compilation or launch
            return _first_line(error), kernel.fallback(arrays, static)
        # Not against the fallback: its operations would all be compiled too, for this once.
        with np.errstate(all="ignore"):
            expected = kernel.reference([float64(array) for array in arrays], static)
        tolerance = max(kernel.tolerance[type_name(a)] for a in arrays if type_name(a) in kernel.floats)
        for name, got, wanted in zip(kernel.outputs, outputs, expected, strict=True):
            difference = relative_error(float64(got), wanted)
            if not difference <= _SLACK * tolerance:
                problem = f"its output {name!r} differs from float64 by {difference:.2g} of the largest value"
                return problem, kernel.fallback(arrays, static)
        return "", outputs


def switched_off() -> list[str]:
    """The names in FLETCHER_KERNELS_OFF, with or without spaces around them."""
    return [name for part in os.environ.get(OFF, "").split(",") if (name := part.strip())]


def relative_error(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Largest difference over the largest magnitude of `wanted`; infinite if one is not finite where the other is.

    Where `wanted` is NaN nothing is compared.
    """
    with np.errstate(invalid="ignore"):  # NaN
        got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    compared = ~np.isnan(wanted)
    finite = compared & np.isfinite(wanted)
    if not np.array_equal(got[compared & ~finite], wanted[compared & ~finite]) or not np.isfinite(got[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    largest = np.abs(wanted[finite]).max()
    return float(np.abs(got[finite] - wanted[finite]).max() / (largest if largest > 0 else 1.0))


def _short(value: int | bool | mx.Dtype) -> str:
    """A template argument, a type without its module: "float16"."""
    return str(value).rsplit(".")[-1]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

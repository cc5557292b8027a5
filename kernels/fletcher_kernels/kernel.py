"""What a kernel is: a body in the dialect, the rule for its grid, and the two other ways to compute the same thing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Dialect = Literal["metal", "cuda"]
Static = Mapping[str, int | bool]
Float64 = npt.NDArray[np.float64]

# A SIMD-group on Metal, a warp on CUDA.
LANES = 32
# Threads of a threadgroup of an elementwise kernel.
THREADS = 256
# Inputs below this arrive in another address space on Metal, and each case would be a pipeline of its own (MLX 0.32).
SMALLEST_INPUT = 8


@dataclass(frozen=True)
class Launch:
    """One launch: template arguments, the grid in threadgroups, threads of each, shapes and types of the outputs."""

    template: tuple[tuple[str, int | bool | mx.Dtype], ...]
    threadgroups: tuple[int, int]
    threads: int
    outputs: tuple[tuple[tuple[int, ...], mx.Dtype], ...]

    @property
    def grid(self) -> tuple[int, int, int]:
        """In threads, as both of MLX's launchers count; always whole threadgroups."""
        return (self.threadgroups[0] * self.threads, self.threadgroups[1], 1)


@dataclass(frozen=True)
class Case:
    """Small inputs for self-check, emulator and GPU tests. Arrays of float64 take the type under test."""

    name: str
    arrays: tuple[npt.NDArray[Any], ...]
    static: Static


@dataclass(frozen=True)
class Kernel:
    """A kernel and what proves it.

    Attributes:
        name: of the kernel.
        bodies: files in `bodies/` that follow one another as its text.
        inputs, outputs: parameter names, in order.
        plan: (arrays, static, dialect) -> `Launch`; looks at shapes and types only.
        fallback: (arrays, static) -> the same outputs in plain MLX operations.
        reference: (float64 arrays, static) -> the same outputs in NumPy, float64.
        cases: (dialect) -> inputs to prove it on.
        supports: (arrays, static) -> whether the kernel covers these sizes; if not, the fallback runs.
        tolerance: largest error by type, in units of the reference's largest magnitude.
        floats: types of the float inputs that it computes in.
    """

    name: str
    bodies: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    plan: Callable[[Sequence[Any], Static, Dialect], Launch]
    fallback: Callable[[Sequence[mx.array], Static], list[mx.array]]
    reference: Callable[[Sequence[npt.NDArray[Any]], Static], list[Float64]]
    cases: Callable[[Dialect], Iterator[Case]]
    supports: Callable[[Sequence[Any], Static], bool]
    tolerance: Mapping[str, float]
    floats: tuple[str, ...] = ("float16", "bfloat16", "float32")


def mlx_type(array: Any) -> mx.Dtype:
    """The MLX type of an `mx.array` or a NumPy array (ml_dtypes' bfloat16 included)."""
    if isinstance(array, mx.array):
        return array.dtype
    dtype: mx.Dtype = getattr(mx, array.dtype.name)
    return dtype


def type_name(array: mx.array) -> str:
    """As `Kernel.tolerance` and `Kernel.floats` have it: "float16"."""
    return str(array.dtype).rsplit(".")[-1]


def on_device(arrays: Sequence[npt.NDArray[Any]], dtype: str) -> list[mx.array]:
    """A case's arrays for MLX, those of float64 in the type under test."""
    return [
        mx.array(array.astype(np.float32)).astype(getattr(mx, dtype)) if array.dtype == np.float64 else mx.array(array)
        for array in arrays
    ]


def float64(array: mx.array) -> npt.NDArray[Any]:
    """What an array of MLX holds, in NumPy: floats as float64, anything else as it is."""
    values = np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def at_least(values: npt.NDArray[Any], size: int = SMALLEST_INPUT) -> npt.NDArray[Any]:
    """Flat `values`, with zeros at the end where there are fewer than `size`."""
    flat = values.reshape(-1)
    return flat if flat.size >= size else np.concatenate([flat, np.zeros(size - flat.size, flat.dtype)])

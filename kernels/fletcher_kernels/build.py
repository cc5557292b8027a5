"""A kernel's text in one dialect, and its launch through MLX."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx

from fletcher_kernels.kernel import Dialect, Kernel, Static


@cache
def read(name: str) -> str:
    """The text of a file of this package."""
    return files("fletcher_kernels").joinpath(name).read_text("utf-8")


def header(dialect: Dialect) -> str:
    """What stands before the kernel: the dialect's names."""
    return read(f"dialect/{dialect}.h")


def source(kernel: Kernel, dialect: Dialect) -> str:
    """The body of the generated function: the names of the thread, then the kernel's own text."""
    return read(f"dialect/{dialect}_prologue.h") + "".join(read(f"bodies/{body}.k") for body in kernel.bodies)


@cache
def _built(name: str, dialect: Dialect) -> Any:
    from fletcher_kernels.registry import KERNELS

    kernel = KERNELS[name]
    text = source(kernel, dialect)
    # MLX keeps compiled CUDA kernels on disk under their name alone: another text must have another name.
    digest = hashlib.sha256((header(dialect) + text).encode()).hexdigest()[:12]
    build = mx.fast.metal_kernel if dialect == "metal" else mx.fast.cuda_kernel
    return build(
        name=f"fletcher_{name}_{digest}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        header=header(dialect),
        source=text,
    )


def launch(kernel: Kernel, arrays: Sequence[mx.array], static: Static, dialect: Dialect) -> list[mx.array]:
    """Put the kernel into MLX's graph; it is compiled and run when its outputs are evaluated.

    Raises:
        RuntimeError: (at evaluation) the kernel does not compile, or the device fails.
    """
    plan = kernel.plan(arrays, static, dialect)
    outputs: list[mx.array] = _built(kernel.name, dialect)(
        inputs=list(arrays),
        template=list(plan.template),
        grid=plan.grid,
        threadgroup=(plan.threads, 1, 1),
        output_shapes=[shape for shape, _ in plan.outputs],
        output_dtypes=[dtype for _, dtype in plan.outputs],
    )
    return outputs

"""A kernel's text in one dialect, and its launch through MLX."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import mlx.core as mx

from fletcher_kernels.kernel import Dialect, Kernel, Launch, Static


@cache
def read(name: str) -> str:
    """The text of a file of this package."""
    return files("fletcher_kernels").joinpath(name).read_text("utf-8")


def included(name: str) -> str:
    """A line that has NVIDIA's compiler read a file of this package; the text itself where it is no file of its own.

    MLX puts a CUDA kernel's text together and hashes it at each launch (0.32): 40 us of the host for 30 KB.
    """
    path = files("fletcher_kernels").joinpath(name)
    return f'#include "{path}"\n' if isinstance(path, Path) and '"' not in str(path) else read(name)


def header(dialect: Dialect) -> str:
    """What stands before the kernel: the dialect's names."""
    return _text(f"dialect/{dialect}.h", dialect)


def source(kernel: Kernel, dialect: Dialect) -> str:
    """The body of the generated function: the names of the thread, then the kernel's own text."""
    return "".join(_text(name, dialect) for name in _source_files(kernel, dialect))


def _text(name: str, dialect: Dialect) -> str:
    return included(name) if dialect == "cuda" else read(name)


def _source_files(kernel: Kernel, dialect: Dialect) -> list[str]:
    return [f"dialect/{dialect}_prologue.h", *(f"bodies/{body}.k" for body in kernel.bodies)]


@cache
def _built(name: str, dialect: Dialect) -> Any:
    from fletcher_kernels.registry import KERNELS

    kernel = KERNELS[name]
    # MLX finds a compiled CUDA kernel by its name alone: another text must have another name.
    whole = "".join(read(file) for file in (f"dialect/{dialect}.h", *_source_files(kernel, dialect)))
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    build = mx.fast.metal_kernel if dialect == "metal" else mx.fast.cuda_kernel
    return build(
        name=f"fletcher_{name}_{digest}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        header=header(dialect),
        source=source(kernel, dialect),
    )


def launch(
    kernel: Kernel, arrays: Sequence[mx.array], static: Static, dialect: Dialect, plan: Launch | None = None
) -> list[mx.array]:
    """Put the kernel into MLX's graph; it is compiled and run when its outputs are evaluated. `plan` is the kernel's
    for these arguments, where the caller has it already.

    Raises:
        RuntimeError: (at evaluation) the kernel does not compile, or the device fails.
    """
    plan = plan or kernel.plan(arrays, static, dialect)
    outputs: list[mx.array] = _built(kernel.name, dialect)(
        inputs=list(arrays),
        template=list(plan.template),
        grid=plan.grid,
        threadgroup=(plan.threads, 1, 1),
        output_shapes=[shape for shape, _ in plan.outputs],
        output_dtypes=[dtype for _, dtype in plan.outputs],
    )
    return outputs

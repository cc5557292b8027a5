"""Compiles and runs, on Linux, the Metal text that `mx.fast.metal_kernel` would hand to Apple's compiler.

    text = capture("scale", header, source, inputs={"x": x}, outputs={"y": (x.shape, np.float16)}, template=[("N", 4)])
    kernel = compile_text(text, Build.STRICT)
    (y,) = kernel.run({"x": x}, {"y": (x.shape, np.float16)}, grid=(n, 1, 1), threadgroup=(32, 1, 1))

Every GPU thread is a fibre; threads meet at SIMD operations and barriers, and an `EmulatorError` tells where they do
not. What it cannot show: speed, registers, fast mathematics, Apple's order of summation, memory between threadgroups.
"""

from .capture import capture
from .errors import CompileError, EmulatorError
from .run import CompiledKernel, Schedule, compile_text
from .toolchain import Build, unavailable

__all__ = [
    "Build",
    "CompileError",
    "CompiledKernel",
    "EmulatorError",
    "Schedule",
    "capture",
    "compile_text",
    "unavailable",
]

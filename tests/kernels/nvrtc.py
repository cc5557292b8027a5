"""NVIDIA's compiler for the CUDA text of a kernel: no GPU, no driver, no nvcc."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
from fletcher_kernels.build import header, source
from fletcher_kernels.kernel import Kernel, Static, mlx_type

_C_TYPES = {
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    mx.float32: "float",
    mx.int32: "int",
    mx.uint8: "unsigned char",
}


class NvrtcError(Exception):
    """The text does not compile; the message is the compiler's log."""


@dataclass(frozen=True)
class Compiled:
    """Machine code, and what the assembler says of it."""

    cubin: bytes
    log: str  # with registers, shared memory and spills of each function


def library() -> Path | None:
    """NVRTC from the PyPI wheel, or None."""
    found = find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found else ():
        for file in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            if "builtins" not in file.name and "alt" not in file.name:
                return file
    return None


def cuda_text(kernel: Kernel, arrays: Sequence[Any], static: Static) -> str:
    """The text that `mx.fast.cuda_kernel` generates for these arguments (MLX 0.32)."""
    plan = kernel.plan(arrays, static, "cuda")
    types = {mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.float32: "float"}
    inputs = [f"const {_C_TYPES[mlx_type(a)]}* {name}" for name, a in zip(kernel.inputs, arrays, strict=True)]
    outputs = [f"{_C_TYPES[dtype]}* {name}" for name, (_, dtype) in zip(kernel.outputs, plan.outputs, strict=True)]
    constants = "".join(
        f"constexpr bool {name} = {str(value).lower()};\n"
        if isinstance(value, bool)
        else f"constexpr int {name} = {value};\n"
        if isinstance(value, int)
        else f"using {name} = {types[value]};\n"
        for name, value in plan.template
    )
    return (
        f"#include <cooperative_groups.h>\n{header('cuda')}\nnamespace mlx::core::cu {{\n"
        f"namespace cg = cooperative_groups;\n__global__ void kernel({', '.join(inputs + outputs)}) {{\n"
        f"{constants}{source(kernel, 'cuda')}\n}}\n}}\n"
    )


def expanded(text: str) -> str:
    """`text` with the files that it includes from this package in their places."""
    return re.sub(r'^#include "(.+)"\n', lambda found: Path(found[1]).read_text("utf-8"), text, flags=re.MULTILINE)


def compile_cuda(text: str, architecture: str = "sm_90a") -> Compiled:
    """Compile to machine code. A process compiles CUDA's own headers once an architecture, which takes a second.

    Raises:
        NvrtcError: it does not compile.
    """
    path = library()
    assert path is not None
    nvrtc = ctypes.CDLL(str(path))
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        f"--include-path={path.parent.parent / 'include'}",
        f"--include-path={path.parent.parent / 'include' / 'cccl'}",
        "--ptxas-options=-v",
        "--pch",
    ]
    # What stands before this line is kept in memory, for texts that begin alike.
    headers = sorted(set(re.findall(r"^#include <.+>$", expanded(text), re.MULTILINE)))
    text = "\n".join([*headers, "#pragma nv_hdrstop", "#line 1", text])
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    nvrtc.nvrtcAddNameExpression(program, b"mlx::core::cu::kernel")
    code = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    )
    log = _text(nvrtc, program, "ProgramLog")
    if code:
        raise NvrtcError(log.decode(errors="replace"))
    return Compiled(_text(nvrtc, program, "CUBIN"), log.decode(errors="replace"))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw

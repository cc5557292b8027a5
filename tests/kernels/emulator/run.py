"""Runs a compiled kernel on numpy arrays: the buffers between guard pages, the grid, the order of the threads."""

import ctypes
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from . import toolchain
from .capture import Output
from .errors import EmulatorError
from .toolchain import Build
from .translate import KERNEL_FILE, Buffer, TranslationUnit, translate

Extent = tuple[int, int, int]

_CONSTANT_BELOW = 8  # elements: MLX binds a smaller input as `constant`
_MAX_THREADS = 1024
_SHAPE_SUFFIXES = ("_shape", "_strides", "_ndim")


class Schedule(IntEnum):
    """In which order simdgroups, and the lanes of each, run up to their next meeting point.

    REVERSE also places every buffer's first byte, not its last, next to an unmapped page; RANDOM aligns threadgroup
    arrays no better than they are declared; INTERLEAVED also changes simdgroups between two SIMD operations. A kernel
    without races gives the same bits in all four.
    """

    FORWARD = 0
    REVERSE = 1
    RANDOM = 2
    INTERLEAVED = 3


@dataclass(frozen=True)
class CompiledKernel:
    unit: TranslationUnit
    build: Build
    library: Path

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, Output],
        grid: Extent,
        threadgroup: Extent,
        schedule: Schedule = Schedule.FORWARD,
        seed: int = 1,
        workers: int = 1,
    ) -> list[np.ndarray]:
        """The outputs, in their order. What the kernel did not write is NaN, or -1 in an array of integers.

        `grid` counts threads, as in MLX; `workers` is the number of OS threads that share the threadgroups.
        """
        if int(np.prod([min(t, g) for t, g in zip(threadgroup, grid, strict=True)])) > _MAX_THREADS:
            raise EmulatorError(f"a threadgroup of {threadgroup}: Metal allows {_MAX_THREADS} threads")
        if min(*grid, *threadgroup) < 1:
            raise EmulatorError(f"an empty grid or threadgroup: {grid}, {threadgroup}")
        runtime = _runtime()
        with ExitStack() as stack:
            memory = {
                buffer.name: stack.enter_context(_guarded(runtime, buffer, inputs, outputs, schedule))
                for buffer in self.unit.buffers
            }
            launch = _launch(self._body(), list(memory.values()), grid, threadgroup, schedule, seed, workers)
            self._dispatch(runtime, launch)
            for name, guarded in memory.items():
                if runtime.emulator_touched_outside(guarded.handle):
                    raise EmulatorError(f"a write outside of buffer '{name}', close to it")
            return [memory[name].array.copy() for name in outputs]

    def _body(self) -> int:
        library = ctypes.CDLL(str(self.library))
        address = ctypes.cast(library.emulator_body, ctypes.c_void_p).value
        assert address is not None
        return address

    def _dispatch(self, runtime: ctypes.CDLL, launch: "_Launch") -> None:
        message = ctypes.create_string_buffer(2048)
        instruction = ctypes.c_void_p()
        if runtime.emulator_dispatch(ctypes.byref(launch), message, len(message), ctypes.byref(instruction)):
            return
        text = message.value.decode(errors="replace")
        if instruction.value is not None:
            line = toolchain.line_of(self.library, runtime.emulator_offset(instruction))
            text += f", at {KERNEL_FILE}:{line}" if line else ""
        raise EmulatorError(text + self._quoted(text))

    def _quoted(self, message: str) -> str:
        """The lines of the kernel that a message names."""
        lines = self.unit.text.splitlines()
        numbers = sorted({int(number) for number in re.findall(rf"{re.escape(KERNEL_FILE)}:(\d+)", message)})
        return "".join(
            f"\n  {number} | {lines[number - 1].strip()[:200]}" for number in numbers if number <= len(lines)
        )


def compile_text(
    text: str,
    build: Build = Build.STRICT,
    instantiation: str | None = None,
    include: tuple[Path, ...] = (),
) -> CompiledKernel:
    """Compiles a captured text, or, for `instantiation` such as `softmax<half>`, one that instantiates nothing.

    `include` names the folders of headers that the text includes beside Metal's own.
    """
    unit = translate(text, instantiation)
    return CompiledKernel(unit, build, toolchain.compile_kernel(unit.cpp, build, include))


class _Triple(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


class _Launch(ctypes.Structure):
    """runtime/worker.h: Launch."""

    _fields_ = (
        ("body", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("guarded", ctypes.POINTER(ctypes.c_void_p)),
        ("buffer_count", ctypes.c_uint),
        ("grid", _Triple),
        ("threadgroup", _Triple),
        ("schedule", ctypes.c_uint),
        ("seed", ctypes.c_uint),
        ("workers", ctypes.c_uint),
    )


@dataclass(frozen=True)
class _Guarded:
    handle: int
    address: int
    array: np.ndarray


@functools.cache
def _runtime() -> ctypes.CDLL:
    """Loaded for all: the kernels' shared objects find their meeting points in it."""
    library = ctypes.CDLL(str(toolchain.runtime()), mode=ctypes.RTLD_GLOBAL)
    handle, boolean = ctypes.c_void_p, ctypes.c_bool
    library.emulator_allocate.argtypes = (ctypes.c_char_p, ctypes.c_size_t, boolean)
    library.emulator_allocate.restype = handle
    library.emulator_data.argtypes = (handle,)
    library.emulator_data.restype = handle
    library.emulator_seal.argtypes = (handle,)
    library.emulator_seal.restype = None
    library.emulator_free.argtypes = (handle,)
    library.emulator_free.restype = None
    library.emulator_touched_outside.argtypes = (handle,)
    library.emulator_touched_outside.restype = boolean
    library.emulator_offset.argtypes = (handle,)
    library.emulator_offset.restype = ctypes.c_size_t
    library.emulator_dispatch.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
    library.emulator_dispatch.restype = boolean
    return library


@contextmanager
def _guarded(
    runtime: ctypes.CDLL,
    buffer: Buffer,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, Output],
    schedule: Schedule,
) -> Iterator[_Guarded]:
    """The buffer's memory, filled: an input with its elements and then read-only, an output with 0xff."""
    if buffer.name in outputs:
        shape, dtype = outputs[buffer.name]
        content, bits = None, np.empty(shape, dtype)
    else:
        content = bits = np.asarray(_input(buffer, inputs), order="C")
    _check_declaration(buffer, bits, is_output=content is None)
    handle = runtime.emulator_allocate(buffer.name.encode(), bits.nbytes, schedule is Schedule.REVERSE)
    try:
        address = runtime.emulator_data(handle)
        raw = (ctypes.c_uint8 * bits.nbytes).from_address(address)
        array = np.ctypeslib.as_array(raw).view(bits.dtype).reshape(bits.shape)
        if content is None:
            ctypes.memset(address, 0xFF, bits.nbytes)
        else:
            array[...] = content
            runtime.emulator_seal(handle)
        yield _Guarded(handle, address, array)
    finally:
        runtime.emulator_free(handle)


def _input(buffer: Buffer, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    if buffer.name in inputs:
        return inputs[buffer.name]
    for suffix in _SHAPE_SUFFIXES:
        array = inputs.get(buffer.name.removesuffix(suffix))
        if array is None or not buffer.name.endswith(suffix):
            continue
        if suffix == "_shape":
            return np.array(array.shape, np.int32)
        if suffix == "_ndim":
            return np.array(array.ndim, np.int32)
        return np.array(np.ascontiguousarray(array).strides, np.int64) // array.itemsize
    raise EmulatorError(f"the kernel has a buffer '{buffer.name}', and neither inputs nor outputs name it")


def _check_declaration(buffer: Buffer, array: np.ndarray, is_output: bool) -> None:
    """A text belongs to the shapes and types that it was captured with."""
    if buffer.element is not None and buffer.element != array.dtype.name:
        raise EmulatorError(f"'{buffer.name}' is {buffer.element} in the text and {array.dtype.name} here")
    if is_output != buffer.is_written:
        raise EmulatorError(f"'{buffer.name}' is an {'input' if is_output else 'output'} in the text")
    if is_output or buffer.element is None or buffer.name.endswith(_SHAPE_SUFFIXES):
        return
    space = "constant" if array.size < _CONSTANT_BELOW else "device"
    if buffer.address_space != space or buffer.is_reference != (array.ndim == 0):
        raise EmulatorError(
            f"'{buffer.name}' with shape {array.shape} is {space} memory in MLX, and the text says "
            f"{buffer.address_space}{' reference' if buffer.is_reference else ''}: capture the text with these arrays"
        )


def _launch(
    body: int,
    memory: list[_Guarded],
    grid: Extent,
    threadgroup: Extent,
    schedule: Schedule,
    seed: int,
    workers: int,
) -> _Launch:
    pointers = ctypes.c_void_p * max(len(memory), 1)
    return _Launch(
        body=body,
        buffers=pointers(*(guarded.address for guarded in memory)),
        guarded=pointers(*(guarded.handle for guarded in memory)),
        buffer_count=len(memory),
        grid=_Triple(*grid),
        threadgroup=_Triple(*threadgroup),
        schedule=int(schedule),
        seed=seed,
        workers=max(workers, 1),
    )

"""The Metal text that `mx.fast.metal_kernel` hands to Apple's compiler, obtained on Linux.

Exporting a function traces it without running it, and a verbose kernel prints its text when it is traced. MLX decides
from the arguments what the text says: an input of fewer than 8 elements is `constant`, a larger one `device`, one
without dimensions a reference. So a text belongs to the shapes it was captured with.
"""

import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import ml_dtypes
import mlx.core as mx
import numpy as np

Output = tuple[tuple[int, ...], np.dtype | type]
Template = Sequence[tuple[str, int | bool | mx.Dtype]]

_MLX_TYPES = {
    np.dtype(np.bool_): mx.bool_,
    np.dtype(np.int8): mx.int8,
    np.dtype(np.int16): mx.int16,
    np.dtype(np.int32): mx.int32,
    np.dtype(np.int64): mx.int64,
    np.dtype(np.uint8): mx.uint8,
    np.dtype(np.uint16): mx.uint16,
    np.dtype(np.uint32): mx.uint32,
    np.dtype(np.uint64): mx.uint64,
    np.dtype(np.float16): mx.float16,
    np.dtype(np.float32): mx.float32,
    np.dtype(ml_dtypes.bfloat16): mx.bfloat16,
}
_FENCE = "```"
_one_capture = threading.Lock()


def capture(
    name: str,
    header: str,
    source: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, Output],
    template: Template = (),
) -> str:
    """The text for these arguments; a bfloat16 array has the dtype `ml_dtypes.bfloat16`."""
    kernel: Callable[..., list[mx.array]] = mx.fast.metal_kernel(  # type: ignore[assignment]
        name=name, input_names=list(inputs), output_names=list(outputs), source=source, header=header
    )

    def traced(*arrays: mx.array) -> list[mx.array]:
        return kernel(
            inputs=list(arrays),
            template=list(template),
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[tuple(shape) for shape, _ in outputs.values()],
            output_dtypes=[_MLX_TYPES[np.dtype(dtype)] for _, dtype in outputs.values()],
            verbose=True,
        )

    arguments = [mx.zeros(array.shape, _MLX_TYPES[array.dtype]) for array in inputs.values()]
    with tempfile.TemporaryDirectory() as folder, _one_capture, _standard_output() as printed:
        mx.export_function(str(Path(folder) / "traced.mlxfn"), traced, *arguments)
        text = printed()
    return text[text.index(_FENCE) + len(_FENCE) : text.rindex(_FENCE)].lstrip("\n")


@contextmanager
def _standard_output() -> Iterator["_Printed"]:
    """What is written to file descriptor 1, below Python and below pytest's own capture, which finds it as it was."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield _Printed(libc, file)
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)


class _Printed:
    def __init__(self, libc: ctypes.CDLL, file: IO[bytes]) -> None:
        self._libc = libc
        self._file = file

    def __call__(self) -> str:
        self._libc.fflush(None)
        self._file.seek(0)
        return self._file.read().decode()

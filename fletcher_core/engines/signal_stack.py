"""The stack that this thread's signal handlers run on, kept as it is while a library is loaded that leaves its own.

OpenVINO's CPU plugin sets an alternate stack on the thread that compiles a model, and frees it. Python's handlers ask
for the alternate stack: the next Ctrl-C on that thread would end the process with a segmentation fault.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))  # as Linux has it


@contextmanager
def kept() -> Iterator[None]:
    """After the block the calling thread's alternate signal stack is what it was before. Linux only."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)

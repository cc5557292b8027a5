"""Memory that two processes share: batches in, vectors out, without a copy on the way between them.

It is one file without a name, cut into slots; a slot holds one batch (ids, then cu_seqlens) and, behind it, room for
its vectors. The parent places the slots and the worker is told where they are.
"""

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fletcher_core.tokens import TokenBatch

_ALIGNMENT = 64  # bytes: a cache line
_SMALLEST = 1 << 16

Float32 = npt.NDArray[np.float32]


@dataclass
class Slot:
    """Bytes `offset` to `offset + capacity` of the arena."""

    offset: int
    capacity: int


@dataclass(frozen=True)
class Place:
    """Where a batch lies: the slot's `offset`, and how many `tokens` and `sequences` there are."""

    offset: int
    tokens: int
    sequences: int

    def size(self, dimension: int) -> int:
        """Bytes of the batch and of its vectors."""
        return self._vectors_at() + 4 * self.sequences * dimension

    def batch(self, memory: mmap.mmap) -> TokenBatch:
        """The batch, in place."""
        ids = np.frombuffer(memory, np.int32, self.tokens, self.offset)
        cu_seqlens = np.frombuffer(memory, np.int64, self.sequences + 1, self.offset + _aligned(4 * self.tokens))
        return TokenBatch(ids, cu_seqlens)

    def vectors(self, memory: mmap.mmap, dimension: int) -> Float32:
        """The room for the vectors, float32 [sequences, dimension], in place."""
        room = np.frombuffer(memory, np.float32, self.sequences * dimension, self.offset + self._vectors_at())
        return room.reshape(self.sequences, dimension)

    def _vectors_at(self) -> int:
        return _aligned(4 * self.tokens) + _aligned(8 * (self.sequences + 1))


class Arena:
    """The file, mapped. Each side has its own; `descriptor` is what they share."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _nameless_file() if descriptor is None else descriptor
        self._memory: mmap.mmap | None = None
        self._size = os.fstat(self.descriptor).st_size

    def memory(self, end: int) -> mmap.mmap:
        """The file as bytes, at least up to `end`. Arrays in an earlier mapping stay what they are."""
        if self._memory is None or len(self._memory) < end:
            self._memory = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return self._memory

    def reserve(self, slot: Slot, size: int) -> Slot:
        """`slot`, or if it is too small a larger one, at the end of the file."""
        if size <= slot.capacity:
            return slot
        larger = Slot(self._size, _aligned(max(_SMALLEST, 2 * size)))
        self._size += larger.capacity
        os.ftruncate(self.descriptor, self._size)
        return larger

    def close(self) -> None:
        """Let go of the file; its memory is free once no array in it is left."""
        self._memory = None
        os.close(self.descriptor)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fletcher-batches", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # macOS: it has no name either, and lives in the page cache
        return os.dup(file.fileno())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT

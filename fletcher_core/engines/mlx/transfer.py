"""A batch's way to the device and its vectors' way back.

On unified memory both are there already. MLX's CUDA arrays are not: what the host makes is managed memory, which moves
page by page when the other side touches it, and costs a small model as much time as its kernels. So on CUDA both ways
lead through pages that stay on the host and that the device reaches over the bus.
"""

import ctypes
import logging
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from fletcher_kernels.deliver import deliver
from fletcher_kernels.kernel import SMALLEST_INPUT, Dialect

from fletcher_core.tokens import Int32

_LOG = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

# Advice covers whole pages of the driver, of up to 2 MiB: smaller allocations could share one.
_SMALLEST = 2 << 20
# CUmem_advise.
_SET_PREFERRED_LOCATION, _UNSET_PREFERRED_LOCATION, _SET_ACCESSED_BY, _UNSET_ACCESSED_BY = 3, 4, 5, 6
_HOST = -1


class Transfer(Protocol):
    """One batch's: `upload`, `deliver`, and `fetch` once the delivery is evaluated; `close` in any case."""

    def upload(self, data: Int32) -> mx.array:
        """Put `data`, flat, on the device."""
        ...

    def deliver(self, vectors: mx.array) -> mx.array:
        """Send float32 (n, d) back; the array to evaluate before `fetch`."""
        ...

    def fetch(self) -> Float32:
        """The vectors that were delivered."""
        ...

    def close(self) -> None:
        """The device reads and writes nothing of it any more."""
        ...


class Transfers(Protocol):
    """Opens a transfer for each batch."""

    def open(self) -> Transfer: ...

    def close(self) -> None: ...


def transfers(dialect: Dialect | None) -> Transfers:
    """What serves the device best; tried out first."""
    if dialect == "cuda":
        staged = StagedTransfers()
        problem = staged.problem()
        if not problem:
            return staged
        staged.close()
        _LOG.warning("batches go to the GPU through managed memory, more slowly: %s", problem)
    return DirectTransfers()


class DirectTransfers:
    """Where the device shares the host's memory, or MLX moves it on demand."""

    def open(self) -> "DirectTransfer":
        return DirectTransfer()

    def close(self) -> None:
        pass


class DirectTransfer:
    """See `Transfer`."""

    def __init__(self) -> None:
        self._vectors: mx.array | None = None

    def upload(self, data: Int32) -> mx.array:
        return mx.array(data)

    def deliver(self, vectors: mx.array) -> mx.array:
        self._vectors = vectors
        return vectors

    def fetch(self) -> Float32:
        # On unified memory this is the device's own buffer.
        return np.asarray(self._vectors)

    def close(self) -> None:
        self._vectors = None


class HostPages:
    """Host memory as an array of MLX, which the device reads and writes where it is."""

    def __init__(self, kind: type[np.int32] | type[np.float32], size: int):
        self.array = mx.array(np.zeros(size, kind))
        self.host: npt.NDArray[Any] = np.asarray(self.array)
        self._driver = ctypes.CDLL("libcuda.so.1")
        try:
            self._advise(_SET_PREFERRED_LOCATION, _HOST)
            self._advise(_SET_ACCESSED_BY, 0)
        except RuntimeError:
            self.close()
            raise

    def close(self) -> None:
        """Make ordinary managed memory of it: MLX will use it again, for anything. On any thread."""
        context = ctypes.c_void_p()
        if self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0:
            self._driver.cuCtxSetCurrent(context)
        for what, device in ((_UNSET_ACCESSED_BY, 0), (_UNSET_PREFERRED_LOCATION, _HOST)):
            try:
                self._advise(what, device)
            except RuntimeError as error:  # a device that failed before, most likely
                _LOG.warning("memory of the host stays as it is: %s", error)

    def _advise(self, what: int, device: int) -> None:
        code = self._driver.cuMemAdvise(
            ctypes.c_uint64(self.host.ctypes.data), ctypes.c_size_t(self.host.nbytes), what, device
        )
        if code:
            raise RuntimeError(f"cuMemAdvise({what}, {device}) gives error {code}")


class StagedTransfers:
    """Host pages for the batches in flight, used again and again. One thread at a time."""

    def __init__(self) -> None:
        self._free: list[HostPages] = []
        self._all: list[HostPages] = []

    def open(self) -> "StagedTransfer":
        return StagedTransfer(self)

    def take(self, kind: type[np.int32] | type[np.float32], size: int) -> HostPages:
        """The smallest free pages that hold `size` elements, or new ones."""
        fitting = [pages for pages in self._free if pages.host.dtype == kind and pages.host.size >= size]
        if fitting:
            pages = min(fitting, key=lambda pages: pages.host.size)
            self._free.remove(pages)
            return pages
        pages = HostPages(kind, max(_SMALLEST // 4, 1 << (size - 1).bit_length()))
        self._all.append(pages)
        return pages

    def give(self, pages: HostPages) -> None:
        self._free.append(pages)

    def problem(self) -> str:
        """Why this does not work here, found by trying; empty if it does."""
        mx.eval(mx.zeros(SMALLEST_INPUT) + 1)  # makes the device current on this thread, for the driver
        sent = np.random.default_rng(0).integers(-(2**20), 2**20, 5000).astype(np.int32)
        try:
            transfer = self.open()
            mx.eval(transfer.deliver(transfer.upload(sent).astype(mx.float32).reshape(50, 100)))
            back = transfer.fetch()
            transfer.close()
        except (OSError, AttributeError, RuntimeError, ValueError) as error:
            return str(error)
        return "" if np.array_equal(back.reshape(-1), sent) else "what came back is not what was sent"

    def close(self) -> None:
        for pages in self._all:
            pages.close()
        self._all.clear()
        self._free.clear()


class StagedTransfer:
    """See `Transfer`."""

    def __init__(self, pool: StagedTransfers):
        self._pool = pool
        self._taken: list[HostPages] = []
        self._delivered: tuple[HostPages, tuple[int, ...]] | None = None

    def upload(self, data: Int32) -> mx.array:
        pages = self._take(np.int32, data.size)
        pages.host[: data.size] = data
        # A copy on the device: kernels read the parts many times.
        return pages.array[: data.size] + 0

    def deliver(self, vectors: mx.array) -> mx.array:
        pages = self._take(np.float32, vectors.size)
        self._delivered = pages, vectors.shape
        return deliver(vectors, pages.array)

    def fetch(self) -> Float32:
        assert self._delivered is not None
        pages, shape = self._delivered
        found: Float32 = pages.host[: shape[0] * shape[1]].reshape(shape).copy()
        return found

    def close(self) -> None:
        for pages in self._taken:
            self._pool.give(pages)
        self._taken.clear()

    def _take(self, kind: type[np.int32] | type[np.float32], size: int) -> HostPages:
        pages = self._pool.take(kind, size)
        self._taken.append(pages)
        return pages

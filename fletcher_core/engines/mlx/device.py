"""The GPU that MLX finds, and its memory."""

import os
import platform
import threading
from typing import Any, ClassVar

import mlx.core as mx
from fletcher_kernels.kernel import Dialect
from fletcher_kernels.launching import launches_singly

from fletcher_core.errors import EngineError

# Left to the system and to other programs. Apple's figure is already what the GPU should use at most.
_SHARE = {"metal": 0.8, "cuda": 0.9, None: 0.5}


def gpu_dialect() -> Dialect | None:
    """The kind of GPU that MLX can use here, or None; to be asked before MLX runs anything, see `launches_singly`."""
    if mx.metal.is_available():
        return "metal"
    if not mx.cuda.is_available():
        return None
    launches_singly()
    return "cuda"


def device_name(dialect: Dialect | None) -> str:
    """What people call the device."""
    if dialect is None:
        return f"{platform.machine()} CPU"
    return str(mx.device_info().get("device_name", f"{dialect} GPU"))


class MlxMemory:
    """`fletcher_core.admission.DeviceMemory` from MLX's own figures, in bytes.

    Sets MLX's memory limit to ours, and never a wired limit (MLX issue 3186: it has brought whole machines down).
    Its figures are those of the whole process, other engines in it included.
    """

    _cache_limit: ClassVar[int] = 0  # MLX has one cache a process: the largest that any engine asked for
    _cache_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, dialect: Dialect | None):
        usable = self._usable(dict(mx.device_info()))
        if dialect is None:
            usable = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if not usable:
            raise EngineError(f"MLX does not say how much memory {device_name(dialect)} has: {mx.device_info()}")
        self.limit = int(usable * _SHARE[dialect])
        mx.set_memory_limit(self.limit)

    def _usable(self, info: dict[str, Any]) -> int:
        """Bytes that this process could use of the device, what it uses already included; 0 if MLX does not say."""
        if recommended := info.get("max_recommended_working_set_size"):
            return int(recommended)
        total = int(info.get("total_memory") or info.get("memory_size") or 0)
        if free := info.get("free_memory"):
            # What another engine here holds is not free, but `active` counts it as well.
            usable = int(free) + self.active() + self.cached()
            return min(usable, total) if total else usable
        return total

    def limit_cache(self, size: int) -> None:
        """Keep at most `size` bytes of freed buffers for reuse, or more if another engine of this process asked for it.

        Without a bound, new shapes make the cache grow for ever.
        """
        with MlxMemory._cache_lock:
            MlxMemory._cache_limit = max(MlxMemory._cache_limit, min(size, self.limit // 2))
            mx.set_cache_limit(MlxMemory._cache_limit)

    def active(self) -> int:
        return int(mx.get_active_memory())

    def peak(self) -> int:
        return int(mx.get_peak_memory())

    def cached(self) -> int:
        """Freed buffers that MLX keeps."""
        return int(mx.get_cache_memory())

    def reset_peak(self) -> None:
        mx.reset_peak_memory()

    def release_cache(self) -> None:
        mx.clear_cache()

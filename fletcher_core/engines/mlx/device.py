"""The GPU that MLX finds, and its memory."""

import os
import platform
from typing import Any

import mlx.core as mx
from fletcher_kernels.kernel import Dialect

from fletcher_core.errors import EngineError

# Left to the system and to other programs. Apple's figure is already what the GPU should use at most.
_SHARE = {"metal": 0.8, "cuda": 0.9, None: 0.5}


def gpu_dialect() -> Dialect | None:
    """The kind of GPU that MLX can use here, or None."""
    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.cuda.is_available() else None


def device_name(dialect: Dialect | None) -> str:
    """What people call the device."""
    if dialect is None:
        return f"{platform.machine()} CPU"
    return str(mx.device_info().get("device_name", f"{dialect} GPU"))


class MlxMemory:
    """`fletcher_core.admission.DeviceMemory` from MLX's own figures, in bytes.

    Sets MLX's memory limit to ours, and never a wired limit (MLX issue 3186: it has brought whole machines down).
    """

    def __init__(self, dialect: Dialect | None):
        info: dict[str, Any] = dict(mx.device_info())
        total = next(
            (
                int(info[key])
                for key in ("max_recommended_working_set_size", "free_memory", "total_memory", "memory_size")
                if info.get(key)
            ),
            0,
        )
        if dialect is None:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if not total:
            raise EngineError(f"MLX does not say how much memory {device_name(dialect)} has: {info}")
        self.limit = int(total * _SHARE[dialect])
        mx.set_memory_limit(self.limit)

    def limit_cache(self, size: int) -> None:
        """Keep at most `size` bytes of freed buffers for reuse: without a bound, new shapes make it grow for ever."""
        mx.set_cache_limit(min(size, self.limit // 2))

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

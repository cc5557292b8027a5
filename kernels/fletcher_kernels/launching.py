"""How MLX hands kernels to a CUDA device: each by itself, not in graphs."""

import os
from functools import cache

import mlx.core as mx

_VARIABLE = "MLX_USE_CUDA_GRAPHS"


@cache
def launches_singly() -> bool:
    """Whether MLX launches each kernel by itself; asked for, unless the environment says otherwise.

    MLX gathers kernels in a CUDA graph and updates an earlier one with it: that costs the host twice the time of plain
    launches, and an updated graph loses the clusters of a kernel. MLX looks at the environment when it first runs
    something: if it already has, nothing is changed.
    """
    seen = mx.get_peak_memory() + mx.get_active_memory() + mx.get_cache_memory()
    if _VARIABLE not in os.environ and seen == 0:
        os.environ[_VARIABLE] = "0"
    return os.environ.get(_VARIABLE) == "0"

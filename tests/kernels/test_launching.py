"""MLX is asked for plain launches only while that can still have an effect."""

import os

import mlx.core as mx
import pytest
from fletcher_kernels.launching import launches_singly


@pytest.mark.parametrize(
    ("before", "ran", "after", "singly"),
    [(None, 0, "0", True), (None, 4096, None, False), ("1", 0, "1", False), ("0", 4096, "0", True)],
)
def test_the_environment_decides(monkeypatch, before, ran, after, singly):
    if before is None:
        monkeypatch.delenv("MLX_USE_CUDA_GRAPHS", raising=False)
    else:
        monkeypatch.setenv("MLX_USE_CUDA_GRAPHS", before)
    # A peak that was reset says nothing: what MLX keeps does.
    for figure in ("get_peak_memory", "get_active_memory"):
        monkeypatch.setattr(mx, figure, lambda: 0)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: ran)
    assert launches_singly.__wrapped__() is singly
    assert os.environ.get("MLX_USE_CUDA_GRAPHS") == after
    monkeypatch.delenv("MLX_USE_CUDA_GRAPHS", raising=False)

"""The device's memory as admission sees it, from figures that MLX would give."""

from dataclasses import dataclass, field

import pytest

from fletcher_core.engines.mlx import device
from fletcher_core.engines.mlx.device import MlxMemory
from fletcher_core.errors import EngineError

GIB = 1 << 30


@dataclass
class FakeMlx:
    """The part of `mlx.core` that knows about memory, on a device where other programs hold `others` bytes."""

    total: int = 80 * GIB
    others: int = 0
    active: int = 0
    cached: int = 0
    info: dict[str, int] | None = None
    memory_limits: list[int] = field(default_factory=list)
    cache_limits: list[int] = field(default_factory=list)

    def device_info(self) -> dict[str, int]:
        if self.info is not None:
            return self.info
        free = self.total - self.others - self.active - self.cached
        return {"free_memory": free, "total_memory": self.total}

    def get_active_memory(self) -> int:
        return self.active

    def get_cache_memory(self) -> int:
        return self.cached

    def set_memory_limit(self, size: int) -> None:
        self.memory_limits.append(size)

    def set_cache_limit(self, size: int) -> None:
        self.cache_limits.append(size)


@pytest.fixture
def mlx(monkeypatch: pytest.MonkeyPatch) -> FakeMlx:
    fake = FakeMlx()
    monkeypatch.setattr(device, "mx", fake)
    monkeypatch.setattr(MlxMemory, "_cache_limit", 0)
    return fake


def test_what_another_engine_of_the_process_holds_counts_once(mlx: FakeMlx) -> None:
    mlx.others = 10 * GIB
    first = MlxMemory("cuda")
    assert first.limit == int(0.9 * 70 * GIB)
    mlx.active, mlx.cached = 30 * GIB, 5 * GIB
    second = MlxMemory("cuda")
    assert second.limit == first.limit
    assert second.limit - second.active() == int(0.9 * 70 * GIB) - 30 * GIB
    assert mlx.memory_limits == [first.limit, second.limit]


def test_the_limit_is_a_share_of_the_device_at_most(mlx: FakeMlx) -> None:
    mlx.info = {"free_memory": 79 * GIB, "total_memory": 80 * GIB}
    mlx.active = 30 * GIB  # in part on the host
    assert MlxMemory("cuda").limit == int(0.9 * 80 * GIB)


@pytest.mark.parametrize(
    ("info", "usable"),
    [
        ({"max_recommended_working_set_size": 20 * GIB, "memory_size": 32 * GIB}, 20 * GIB),
        ({"memory_size": 32 * GIB}, 32 * GIB),
        ({"free_memory": 8 * GIB}, 10 * GIB),
    ],
)
def test_figures_of_other_devices(mlx: FakeMlx, info: dict[str, int], usable: int) -> None:
    mlx.info, mlx.active = info, 2 * GIB
    assert MlxMemory("metal").limit == int(0.8 * usable)


def test_a_device_that_does_not_say_is_an_error(mlx: FakeMlx) -> None:
    mlx.info = {}
    with pytest.raises(EngineError, match="does not say how much memory"):
        MlxMemory("cuda")
    assert MlxMemory(None).limit > 0


def test_the_cache_is_as_large_as_the_engine_that_needs_most(mlx: FakeMlx) -> None:
    for size in (GIB, 3 * GIB, 2 * GIB, 1000 * GIB):
        MlxMemory("cuda").limit_cache(size)
    assert mlx.cache_limits == [GIB, 3 * GIB, 3 * GIB, int(0.9 * 80 * GIB) // 2]

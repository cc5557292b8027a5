"""When stages were busy: seconds add up, shares are of their part of the time."""

import threading
import time

import pytest

from fletcher_core.telemetry import StageClock


def clock(seconds: float) -> StageClock:
    """One that was made so many seconds ago."""
    made = StageClock()
    made.started = time.perf_counter() - seconds
    return made


def test_a_span_shows_in_the_parts_that_it_touches() -> None:
    stages = clock(10.0)
    stages.busy("compute", stages.started + 2.5, stages.started + 6.0)
    stages.busy("write", stages.started + 9.0, stages.started + 9.5)
    shares = stages.shares(4)
    assert shares["compute"] == pytest.approx((0.0, 1.0, 0.4, 0.0), abs=0.03)
    assert shares["write"] == pytest.approx((0.0, 0.0, 0.0, 0.2), abs=0.01)


def test_threads_side_by_side_add_seconds_but_a_stage_is_never_more_than_busy() -> None:
    stages = clock(4.0)
    for _ in range(3):
        stages.busy("send", stages.started, stages.started + 2.0)
    assert stages.seconds("send") == pytest.approx(6.0)
    assert stages.shares(2)["send"] == pytest.approx((1.0, 0.0), abs=0.01)


def test_nothing_was_busy() -> None:
    assert StageClock().shares(5) == {}
    assert StageClock().seconds("diff") == 0.0


def test_a_failure_is_time_too() -> None:
    stages = StageClock()
    with pytest.raises(ValueError, match="gone"), stages.measuring("diff"):
        raise ValueError("gone")
    assert stages.seconds("diff") > 0.0


def test_many_threads_lose_nothing() -> None:
    stages = clock(1.0)
    threads = [threading.Thread(target=lambda: [stages.busy("send", 0.0, 1.0) for _ in range(1000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stages.seconds("send") == pytest.approx(8000.0)


def test_a_long_run_takes_no_more_memory_and_keeps_its_shape() -> None:
    stages = clock(100_000.0)
    for at in range(100_000):
        if at < 25_000 or at >= 75_000:
            stages.busy("compute", stages.started + at, stages.started + at + 0.5)
    assert stages.shares(4)["compute"] == pytest.approx((0.5, 0.0, 0.0, 0.5), abs=0.01)
    assert sum(parts.nbytes for parts in stages._parts.values()) < 4096

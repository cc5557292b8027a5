"""The share of each second during which there was work, however rarely anybody looks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.telemetry.busy_seconds import BusySeconds, EngineWork

BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Watched:
    """A histogram on a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.seconds = BusySeconds("busy_ratio", "Of a test.", buckets=BOUNDS, registry=None, clock=lambda: self.now)

    def figures(self) -> dict[str, float]:
        (family,) = self.seconds.collect()
        return {s.labels["le"] if "le" in s.labels else s.name[-5:]: s.value for s in family.samples}

    @property
    def count(self) -> float:
        return self.figures()["count"]

    @property
    def sum(self) -> float:
        return next(s.value for f in self.seconds.collect() for s in f.samples if s.name.endswith("_sum"))


def test_nothing_is_seen_before_the_first_work() -> None:
    watched = Watched()
    watched.now += 1000
    assert watched.count == 0


def test_a_second_counts_once_it_is_over() -> None:
    watched = Watched()
    watched.seconds.began()
    watched.now += 0.25
    watched.seconds.ended()
    watched.now += 0.7
    assert watched.count == 0
    watched.now += 0.1
    assert (watched.count, watched.sum) == (1, pytest.approx(0.25))
    figures = watched.figures()
    assert (figures["0.2"], figures["0.3"], figures["+Inf"]) == (0, 1, 1)


def test_long_work_and_long_idleness_are_filled_in_afterwards() -> None:
    watched = Watched()
    watched.seconds.began()
    watched.now += 10.5
    assert (watched.count, watched.sum) == (10, pytest.approx(10.0))
    watched.seconds.ended()
    watched.now += 10 * 24 * 3600.0  # at once, not second by second
    assert watched.count == 10 + 10 * 24 * 3600
    assert watched.sum == pytest.approx(10.5)


def test_two_engines_at_once_are_busy_once() -> None:
    watched = Watched()
    watched.seconds.began()
    watched.now += 0.25
    watched.seconds.began()
    watched.now += 0.25
    watched.seconds.ended()
    watched.now += 0.25
    watched.seconds.ended()
    watched.now += 1.0
    assert watched.sum == pytest.approx(0.75)


@given(st.integers(0, 2**32 - 1))
def test_all_of_the_time_is_there_whenever_one_looks(seed: int) -> None:
    chance, watched = random.Random(seed), Watched()
    working = busy = 0.0
    began = watched.now
    watched.seconds.began()
    watched.seconds.ended()
    for _ in range(chance.randrange(1, 40)):
        step = chance.choice((0.0, 0.01, 0.3, 1.0, 2.7))
        watched.now += step
        busy += step if working else 0.0
        move = chance.choice((1, -1, 0)) if working else chance.choice((1, 0))
        working += move
        if move:
            (watched.seconds.began if move > 0 else watched.seconds.ended)()
        else:
            watched.figures()
    while working:
        watched.seconds.ended()
        working -= 1
    watched.now += 1.0
    whole = int(watched.now - began + 1e-9)
    assert watched.count == pytest.approx(whole, abs=1)
    assert watched.sum == pytest.approx(busy)


def test_a_stream_has_work_while_a_batch_is_out_and_texts_are_there() -> None:
    watched = Watched()
    work = EngineWork(watched.seconds)
    for waits in (0.0, 0.5):
        work.sent()
        work.sent()
        watched.now += 0.125  # computing
        work.waits()
        watched.now += waits  # the host is the slower one
        work.goes_on()
        watched.now += 0.125
        work.answered()
        watched.now += 0.125
        work.answered()
        watched.now += 0.125  # nothing is out
    watched.now += 1.0
    assert watched.sum == pytest.approx(2 * 0.375)

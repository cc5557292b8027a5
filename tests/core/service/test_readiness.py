"""Readiness is what the engine in use does now: hanging, broken, wrong and well again."""

import threading
import time
from collections.abc import Iterator

import pytest
from controlled_engine import ControlledEngine, with_engine

from fletcher_core import Embedder
from fletcher_core.errors import EngineError
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.readiness import Readiness, Report

# Twice the two seconds that a quiet machine needs at most (bench/readiness.py), as the test machine is not one.
_NOTICED = 4.0


@pytest.fixture
def engine(minilm: Embedder) -> ControlledEngine:
    return ControlledEngine(minilm.dimension)


@pytest.fixture
def batcher(minilm: Embedder, engine: ControlledEngine) -> Iterator[Batcher]:
    made = Batcher(with_engine(minilm, engine))
    yield made
    engine.gate.set()
    made.close(5)


def becomes(readiness: Readiness, ready: bool, seconds: float) -> Report:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        report = readiness.check()
        if report.ready is ready:
            return report
        time.sleep(0.02)
    raise AssertionError(f"it was {'not ' if ready else ''}ready for {seconds} s: {report}")


def test_an_engine_that_is_well_is_ready(batcher: Batcher) -> None:
    report = Readiness(batcher, 2.0).check()
    assert report.ready
    assert report.reason == ""
    assert report.engine["name"] == "controlled"
    assert report.as_dict()["queue"]["tokens"] == 0


def test_what_was_found_holds_for_a_second(batcher: Batcher, engine: ControlledEngine) -> None:
    readiness = Readiness(batcher, 2.0)
    texts = engine.texts
    first = readiness.check()
    with_probe = engine.texts
    assert with_probe > texts
    assert all(readiness.check() is first for _ in range(100))
    threads = [threading.Thread(target=readiness.check) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.texts == with_probe
    time.sleep(1.05)
    assert readiness.latest is None
    assert readiness.check() is not first


@pytest.mark.parametrize("flaw", [float("nan"), float("inf"), 0.0, 0.05])
def test_wrong_vectors_are_not_ready(batcher: Batcher, engine: ControlledEngine, flaw: float) -> None:
    readiness = Readiness(batcher, 1.0)
    becomes(readiness, True, 5)
    engine.flaw = flaw
    assert "computes wrong vectors" in becomes(readiness, False, _NOTICED).reason
    engine.flaw = None
    becomes(readiness, True, _NOTICED)


def test_an_engine_that_hangs_is_not_ready_and_gets_no_further_probes(
    batcher: Batcher, engine: ControlledEngine
) -> None:
    readiness = Readiness(batcher, 0.5)
    becomes(readiness, True, 5)
    engine.gate.clear()
    assert "hangs, or is overloaded" in becomes(readiness, False, _NOTICED).reason
    for _ in range(2):
        time.sleep(1.05)
        assert not readiness.check().ready
    assert batcher.queued_tokens == 0  # one probe is with the engine, and no other waits
    engine.gate.set()
    becomes(readiness, True, _NOTICED)


def test_an_engine_that_fails_is_not_ready(batcher: Batcher, engine: ControlledEngine) -> None:
    readiness = Readiness(batcher, 1.0)
    becomes(readiness, True, 5)
    engine.failure = EngineError("the process of engine 'mlx' has ended")
    assert "has ended" in becomes(readiness, False, _NOTICED).reason
    engine.failure = ZeroDivisionError("oh")
    assert not becomes(readiness, False, _NOTICED).ready
    engine.failure = None
    becomes(readiness, True, _NOTICED)


def test_a_service_under_load_is_ready(batcher: Batcher, engine: ControlledEngine) -> None:
    readiness = Readiness(batcher, 1.0)
    engine.seconds = 0.01
    waiting = [batcher.submit(["word " * 60] * 100) for _ in range(20)]
    for _ in range(2):
        assert readiness.check().ready  # a probe does not wait for what came before
        time.sleep(1.05)
    assert not waiting[-1].done()
    engine.seconds = 0.0
    for future in waiting:
        future.result(30)


def test_an_engine_that_does_not_work_at_the_start_is_an_error(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.failure = EngineError("no")
    with pytest.raises(EngineError):
        Readiness(batcher, 1.0)


def test_an_engine_that_hangs_at_the_start_is_an_error(
    batcher: Batcher, engine: ControlledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_core.service.readiness._FIRST_SECONDS", 0.2)
    engine.gate.clear()
    with pytest.raises(EngineError, match="it hangs"):
        Readiness(batcher, 1.0)


def test_a_service_that_ends_is_not_ready(batcher: Batcher) -> None:
    readiness = Readiness(batcher, 1.0)
    assert readiness.check().ready
    readiness.draining = lambda: True
    assert "ending" in readiness.check().reason


def test_a_longbow_that_is_down_is_told_and_holds_nothing_up(batcher: Batcher) -> None:
    settings = LongbowSettings("127.0.0.1:9", call_timeout=1.0)
    with LongbowClient(settings) as client:
        readiness = Readiness(batcher, 1.0, client)
        end = time.monotonic() + 15
        while "reachable" not in (report := readiness.check()).longbow and time.monotonic() < end:
            assert report.ready
            time.sleep(0.1)
    assert report.ready
    assert report.longbow["reachable"] is False
    assert report.longbow["circuit"] in ("closed", "open", "half-open")
    assert "127.0.0.1:9" in report.longbow["error"]

"""The engine in a process of its own, and the one that stands in for it: real processes, really broken."""

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaos.broken_engine import VARIABLE
from fletcher_core import Embedder
from fletcher_core.engines import EngineSpec, start_engine
from fletcher_core.engines.failover import FailoverEngine, ProbeIntervals
from fletcher_core.engines.isolated import EngineLost, IsolatedEngine
from fletcher_core.engines.isolated.arena import Arena, Place, Slot
from fletcher_core.engines.isolated.engine import Supervision
from fletcher_core.engines.isolated.stream import Stream
from fletcher_core.errors import ConfigError, DeadlineExceeded, EngineError, ModelError, RunCancelled
from fletcher_core.stop import Stop
from fletcher_core.tokens import TokenBatch, cumulative

QUICK = Supervision(hang_floor=2.0, hang_factor=50.0)
PATIENT = Supervision(hang_floor=30.0)


@pytest.fixture(scope="session")
def spec(golden: Path) -> EngineSpec:
    return EngineSpec(str(golden / "bert_tiny"), "bert_tiny", "openvino", "fp32", True, 128, threads=1)


@pytest.fixture
def broken(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`broken(hang=3)` -> a spec of an engine that hangs over every third batch."""

    def make(**faults: Any) -> EngineSpec:
        monkeypatch.setenv(VARIABLE, json.dumps(faults))
        return replace(spec, loader="chaos.broken_engine:load")

    return make


def batches(count: int, texts: int = 4, seed: int = 0) -> list[TokenBatch]:
    chance = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        lengths = chance.integers(3, 40, texts)
        ids = chance.integers(5, 900, int(lengths.sum())).astype(np.int32)
        made.append(TokenBatch(ids, cumulative(lengths)))
    return made


def vectors_of(engine: Any, given: list[TokenBatch], stop: Stop | None = None) -> np.ndarray:
    return np.concatenate([vectors.copy() for vectors in engine.run(iter(given), *([stop] if stop else []))])


@pytest.fixture(scope="session")
def expected(spec: EngineSpec) -> np.ndarray:
    return vectors_of(spec.load(), batches(30))


@pytest.fixture
def isolated(spec: EngineSpec) -> Iterator[IsolatedEngine]:
    engine = IsolatedEngine(spec, QUICK)
    yield engine
    engine.close()


def failover(
    primary: EngineSpec, standby: EngineSpec, supervision: Supervision = PATIENT, **intervals: float
) -> FailoverEngine:
    return FailoverEngine(
        IsolatedEngine(primary, supervision),
        lambda: IsolatedEngine(standby, PATIENT),
        ProbeIntervals(**{"first": 60.0, **intervals}),
    )


def test_a_worker_computes_what_the_engine_does_in_this_process(isolated: IsolatedEngine, expected: np.ndarray) -> None:
    assert isolated.name == "openvino"
    assert isolated.batching.token_budget == 512
    for _ in range(3):
        assert np.array_equal(vectors_of(isolated, batches(30)), expected)


def test_batches_of_very_different_sizes_share_the_arena(isolated: IsolatedEngine, spec: EngineSpec) -> None:
    given = [batches(1, texts, seed)[0] for seed, texts in enumerate([1, 300, 2, 700, 1, 5, 300, 1])]
    assert np.array_equal(vectors_of(isolated, given), vectors_of(spec.load(), given))


def test_a_stream_given_up_halfway_leaves_the_worker_fit_for_the_next(
    isolated: IsolatedEngine, expected: np.ndarray
) -> None:
    pid = isolated.pid
    for taken in (0, 1, 3):
        stream = isolated.run(iter(batches(30)))
        for _ in range(taken):
            next(stream)
        stream.close()
        assert np.array_equal(vectors_of(isolated, batches(30)), expected)
    assert isolated.pid == pid  # it was not ended for it


def test_an_error_of_whoever_makes_the_batches_passes_through(isolated: IsolatedEngine, expected: np.ndarray) -> None:
    def failing() -> Iterator[TokenBatch]:
        yield from batches(5)
        raise ZeroDivisionError("the source")

    with pytest.raises(ZeroDivisionError, match="the source"):
        list(isolated.run(failing()))
    assert np.array_equal(vectors_of(isolated, batches(30)), expected)


def test_it_stops_when_told_to(broken: Any) -> None:
    engine = IsolatedEngine(broken(), QUICK)
    cancelled = threading.Event()
    stream = engine.run(iter(batches(30)), Stop(cancelled))
    next(stream)
    cancelled.set()
    with pytest.raises(RunCancelled):
        list(stream)
    with pytest.raises(DeadlineExceeded):
        list(engine.run(iter(batches(30)), Stop(deadline=time.monotonic() - 1)))
    assert len(vectors_of(engine, batches(3))) == 12
    engine.close()


def test_a_stop_is_heard_while_the_worker_hangs(broken: Any) -> None:
    engine = IsolatedEngine(broken(hang=4), Supervision(hang_floor=30.0))
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    started = time.monotonic()
    engine.supervision = replace(engine.supervision, hang_floor=0.5)  # what the worker gets to end the stream
    with pytest.raises(RunCancelled):
        list(engine.run(iter(batches(30)), Stop(cancelled)))
    assert time.monotonic() - started < 25.0  # and not hang_floor's 30
    assert not engine.is_alive  # it did not end the stream, and was ended


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"abort": 5}, r"ended by signal SIGABRT"),
        ({"hang": 5}, r"has been silent for \d.\d s over a batch of 4 texts: it hangs"),
    ],
)
def test_a_lost_worker_is_named_with_what_became_of_it(broken: Any, faults: dict[str, Any], said: str) -> None:
    engine = IsolatedEngine(broken(**faults), QUICK)
    vectors_of(engine, batches(2))  # so that its rate is known, and it is given half a second
    with pytest.raises(EngineLost, match=said):
        list(engine.run(iter(batches(30))))
    assert not engine.is_alive
    with pytest.raises(EngineLost, match="has ended"):
        list(engine.run(iter(batches(1))))


def test_a_worker_killed_from_outside_is_lost_and_can_be_started_again(
    isolated: IsolatedEngine, expected: np.ndarray
) -> None:
    assert isolated.pid is not None
    os.kill(isolated.pid, signal.SIGKILL)
    with pytest.raises(EngineLost, match="SIGKILL"):
        list(isolated.run(iter(batches(30))))
    isolated.restart()
    assert np.array_equal(vectors_of(isolated, batches(30)), expected)


def test_the_last_words_of_a_worker_are_kept_however_much_it_says(broken: Any) -> None:
    engine = IsolatedEngine(broken(words=200_000, abort=5), QUICK)
    vectors_of(engine, batches(2))
    with pytest.raises(EngineLost, match="SIGABRT; its last words: the last word") as lost:
        list(engine.run(iter(batches(30))))
    assert len(str(lost.value)) < 3000


def test_nothing_is_imported_from_the_folder_that_a_program_runs_in(
    spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')")
    monkeypatch.chdir(tmp_path)
    IsolatedEngine(spec, QUICK).close()


def test_an_interrupt_while_a_stream_is_being_stopped_mixes_up_no_answers(
    isolated: IsolatedEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C twice in a notebook."""
    stream = isolated.run(iter(batches(30)))
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "hear_over", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stream.close()
    assert not isolated.is_alive
    isolated.restart()
    assert np.array_equal(vectors_of(isolated, batches(30)), expected)


def test_an_interrupt_right_after_the_first_batch_went_out_mixes_up_no_answers(
    isolated: IsolatedEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = isolated._process
    assert process is not None
    send = process.send

    def interrupted(*messages: Any) -> None:
        send(*messages)
        if messages[0]["kind"] == "begin":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(isolated.run(iter(batches(30, seed=5))))
    assert np.array_equal(vectors_of(isolated, batches(30)), expected)


def test_answers_to_another_stream_are_not_taken(isolated: IsolatedEngine) -> None:
    isolated._stream += 1
    stream = isolated.run(iter(batches(3)))
    assert isolated._process is not None
    receive = isolated._process.receive
    isolated._process.receive = lambda *given: {**(receive(*given) or {}), "stream": 1}  # type: ignore[method-assign]
    with pytest.raises(EngineLost, match="answers out of step: to stream 1"):
        list(stream)


def test_a_process_with_many_open_files_has_workers(spec: EngineSpec) -> None:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 1500:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 1500), most))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        IsolatedEngine(spec, QUICK).close()
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def test_a_process_that_cannot_be_started_is_a_lost_engine(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: (_ for _ in ()).throw(OSError("out of processes")))
    for _ in range(3):
        with pytest.raises(EngineLost, match="the engine's process cannot be started: out of processes"):
            IsolatedEngine(spec, QUICK)
    assert len(os.listdir("/proc/self/fd")) == before


def test_paths_of_any_kind_may_stand_in_the_import_path(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*sys.path, Path("src"), ""])
    IsolatedEngine(spec, QUICK).close()


def test_an_engine_that_raises_is_not_lost(broken: Any) -> None:
    engine = IsolatedEngine(broken(exception=7), QUICK)
    with pytest.raises(EngineError, match="chaos: the engine has a defect") as raised:
        list(engine.run(iter(batches(30))))
    assert not isinstance(raised.value, EngineLost)
    assert engine.is_alive
    assert len(vectors_of(engine, batches(3))) == 12
    engine.close()


def test_wrong_vectors_are_found_by_the_known_batch(broken: Any) -> None:
    engine = IsolatedEngine(broken(wrong_after=10), replace(QUICK, check_every=0.0))
    with pytest.raises(EngineLost, match="computes wrong vectors: a known text's have a cosine of"):
        list(engine.run(iter(batches(30))))
    assert not engine.is_alive


def test_errors_of_loading_keep_their_class_and_words(spec: EngineSpec, tmp_path: Path, broken: Any) -> None:
    with pytest.raises(ConfigError, match="precision is 'fp16'"):
        IsolatedEngine(replace(spec, precision="fp16"))
    with pytest.raises(ModelError, match=r"config\.json"):
        IsolatedEngine(replace(spec, folder=str(tmp_path)))
    flag = tmp_path / "refuse"
    flag.touch()
    with pytest.raises(EngineError, match="chaos: the device cannot be opened"):
        IsolatedEngine(broken(refuse_start=str(flag)))


def test_the_worker_ends_with_its_parent(spec: EngineSpec, tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # a parent of its own, which is then killed
        try:
            engine = IsolatedEngine(spec, QUICK)
            os.write(write, str(engine.pid).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    worker = int(os.read(read, 20))
    os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "faults",
    [{"allocation": 9}, {"exception": 9}, {"abort": 9}, {"hang": 9}],
    ids=lambda faults: next(iter(faults)),
)
def test_what_the_first_engine_fails_on_the_second_computes(
    broken: Any, spec: EngineSpec, expected: np.ndarray, faults: dict[str, Any]
) -> None:
    engine = failover(broken(**faults), spec, QUICK)
    vectors_of(engine, batches(1))
    assert np.array_equal(vectors_of(engine, batches(30)), expected)
    health = engine.health
    assert health.failed >= 1
    assert health.batches >= 1
    assert health.last_failure
    assert health.standing_in == (next(iter(faults)) in ("abort", "hang"))
    assert np.array_equal(vectors_of(engine, batches(30)), expected)
    engine.close()


def test_the_first_engine_is_taken_back(broken: Any, spec: EngineSpec, expected: np.ndarray, tmp_path: Path) -> None:
    engine = failover(broken(abort=9, once=str(tmp_path / "once")), spec, first=0.1)
    assert np.array_equal(vectors_of(engine, batches(30)), expected)
    deadline = time.monotonic() + 30
    while engine.health.standing_in:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert engine.health.taken_back == 1
    computed = engine.health.batches
    assert np.array_equal(vectors_of(engine, batches(30)), expected)
    assert engine.health.batches == computed  # by the first one
    engine.close()


def test_an_engine_that_stays_ill_is_tried_after_growing_intervals(
    broken: Any, spec: EngineSpec, expected: np.ndarray, tmp_path: Path
) -> None:
    flag = tmp_path / "refuse"
    engine = failover(broken(abort=9, refuse_start=str(flag)), spec, first=0.1, longest=0.4)
    flag.touch()
    assert np.array_equal(vectors_of(engine, batches(30)), expected)
    deadline = time.monotonic() + 30
    while "cannot be opened" not in engine.health.last_failure:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert engine.health.standing_in
    assert np.array_equal(vectors_of(engine, batches(30)), expected)
    flag.unlink()
    while engine.health.standing_in:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    engine.close()


def test_another_engine_in_the_place_of_the_first_is_not_taken_for_it(
    spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a GPU does not come up again and `auto` leads to the CPU."""
    monkeypatch.setattr("fletcher_core.engines.start._may_run_on_gpu", lambda _: False)
    engine = start_engine(replace(spec, choice="cpu"), "process")
    assert isinstance(engine, FailoverEngine)
    assert engine.primary.spec.choice == engine.name
    engine.close()


def test_a_batch_that_no_engine_computes_is_no_reason_to_replace_the_first(broken: Any) -> None:
    batch = TokenBatch(np.array([5, 1000, 6], np.int32), cumulative(np.array([3])))
    refusing = broken(refused=1000)
    engine = failover(refusing, refusing)
    for _ in range(5):
        with pytest.raises(EngineError, match="chaos: this text is refused"):
            list(engine.run([batch]))
    assert not engine.health.standing_in
    engine.close()


def test_distrust_of_vectors_that_the_first_engine_did_not_compute_is_nothing(broken: Any, spec: EngineSpec) -> None:
    engine = failover(broken(abort=9), spec)
    vectors_of(engine, batches(30))
    assert engine.health.standing_in
    engine.distrust("these were the other engine's")
    assert not engine._distrusted
    engine.close()


def test_nobody_tries_to_start_an_engine_that_nobody_has(broken: Any, spec: EngineSpec) -> None:
    engine = failover(broken(abort=9), spec, first=0.2)
    vectors_of(engine, batches(30))
    del engine
    deadline = time.monotonic() + 10
    while any(thread.name == "fletcher-probe" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_engine_with_many_wrong_vectors_is_replaced(minilm: Embedder, broken: Any) -> None:
    texts = [f"text number {number} of many" for number in range(200)]
    right = minilm.embed(texts)
    whole = EngineSpec(str(minilm.package.folder), "minilm", "openvino", "fp32", True, 384)
    engine = failover(replace(whole, loader=broken(nan_share=0.5).loader), whole)
    flawed = Embedder(
        minilm.package, engine, minilm.encoder, minilm.encoder, minilm.card, True, None, lambda: minilm.engine
    )
    for _ in range(3):
        assert np.allclose(flawed.embed(texts), right, atol=1e-5)
    assert engine.health.standing_in
    assert "of 200 vectors were wrong; another engine got them right" in engine.health.last_failure
    flawed.close()


def test_isolation_by_setting(minilm: Embedder) -> None:
    with pytest.raises(ConfigError, match="isolation is 'always'; choose one of auto, process, none"):
        Embedder.load(isolation="always")  # type: ignore[arg-type]
    assert not isinstance(minilm.engine, FailoverEngine)
    isolated = Embedder.load(engine="openvino", precision="fp32", isolation="process")
    assert isinstance(isolated.engine, FailoverEngine)
    texts = ["some text", "another, which is longer by a few words", "x"]
    assert np.array_equal(isolated.embed(texts), minilm.embed(texts))
    assert np.array_equal(isolated.embed_query("some text"), minilm.embed_query("some text"))
    isolated.close()


def test_a_gpu_that_is_not_there_after_all_costs_no_process(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletcher_core.engines.start._may_run_on_gpu", lambda spec: True)
    engine = start_engine(EngineSpec(str(golden / "bert_tiny"), "bert_tiny", "auto", "auto", True, 128))
    assert engine.name in ("native", "openvino")
    assert not isinstance(engine, FailoverEngine)


def test_the_arena_places_what_does_not_fit_elsewhere() -> None:
    arena = Arena()
    slot = arena.reserve(Slot(0, 0), 100)
    assert arena.reserve(slot, slot.capacity) == slot
    larger = arena.reserve(slot, slot.capacity + 1)
    assert larger.offset == slot.offset + slot.capacity
    memory = arena.memory(larger.offset + larger.capacity)
    place = Place(larger.offset, 7, 2)
    place.batch(memory).ids[:] = range(7)
    place.vectors(memory, 3)[:] = 1.5
    other = Arena(os.dup(arena.descriptor))
    assert other.memory(larger.offset + larger.capacity)[larger.offset] == 0
    assert place.batch(other.memory(1)).ids.tolist() == list(range(7))
    assert (place.vectors(other.memory(1), 3) == 1.5).all()
    arena.close()
    other.close()

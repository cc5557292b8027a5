"""Several engines as one: real processes, really lost, and every batch computed once and in its place."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos import tiny_models
from chaos.broken_engine import VARIABLE
from fletcher_core import Embedder
from fletcher_core.engines import EngineSpec, devices, start_engine
from fletcher_core.engines.dispatch import Rate
from fletcher_core.engines.failover import FailoverEngine, ProbeIntervals
from fletcher_core.engines.isolated import EngineLost, IsolatedEngine
from fletcher_core.engines.isolated.engine import Supervision
from fletcher_core.engines.isolated.stream import Stream
from fletcher_core.engines.native.engine import supported
from fletcher_core.engines.pool import EnginePool
from fletcher_core.engines.unanswered import BatchRefused
from fletcher_core.errors import ConfigError, EngineError, RunCancelled
from fletcher_core.models import ModelPackage
from fletcher_core.stop import Stop
from fletcher_core.telemetry.metrics import REGISTRY
from fletcher_core.tokens import TokenBatch, cumulative

PATIENT = Supervision(hang_floor=30.0)
SOON, NEVER = ProbeIntervals(first=0.05, longest=0.2), ProbeIntervals(first=600.0)
ODD = 999  # a token that only some tests' texts have


@pytest.fixture(scope="session")
def spec(golden: Path) -> EngineSpec:
    """The engine that starts in half the other's time, where the processor runs it."""
    folder = golden / "bert_tiny"
    is_native = supported(ModelPackage.read(folder, "bert_tiny").architecture)
    choice, precision = ("native", "bf16") if is_native else ("openvino", "fp32")
    return EngineSpec(str(folder), "bert_tiny", choice, precision, True, 128, threads=1)  # type: ignore[arg-type]


@pytest.fixture
def broken(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`broken(hang=3)` -> a spec of an engine that hangs over every third batch."""

    def make(**faults: Any) -> EngineSpec:
        monkeypatch.setenv(VARIABLE, json.dumps(faults))
        return replace(spec, loader="chaos.broken_engine:load")

    return make


@pytest.fixture(scope="session")
def whole(spec: EngineSpec) -> Iterator[EnginePool]:
    """Of two devices, for tests that harm none."""
    pool = EnginePool([spec, spec], PATIENT, NEVER)
    yield pool
    pool.close()


@pytest.fixture
def made() -> Iterator[Callable[..., EnginePool]]:
    """`made(specs)` -> a pool that is closed in the end."""
    pools: list[EnginePool] = []

    def make(specs: list[EngineSpec], supervision: Supervision = PATIENT, intervals: Any = SOON) -> EnginePool:
        pools.append(EnginePool(specs, supervision, intervals))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(scope="session")
def alone(spec: EngineSpec) -> Any:
    return spec.load()


def batches(count: int, texts: int = 4, seed: int = 0, odd: tuple[int, ...] = ()) -> list[TokenBatch]:
    """The ones numbered `odd` have the odd token."""
    chance = np.random.default_rng(seed)
    found = []
    for number in range(count):
        lengths = chance.integers(3, 40, texts)
        ids = chance.integers(5, 900, int(lengths.sum())).astype(np.int32)
        if number in odd:
            ids[1] = ODD
        found.append(TokenBatch(ids, cumulative(lengths)))
    return found


def vectors_of(engine: Any, given: list[TokenBatch]) -> np.ndarray:
    return np.concatenate([vectors.copy() for vectors in engine.run(iter(given))])


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(1, 40), max_size=40), seed=st.integers(0, 2**32 - 1))
def test_vectors_are_a_single_engines_and_in_its_order(
    whole: EnginePool, alone: Any, counts: list[int], seed: int
) -> None:
    given = [batches(1, texts, seed + number)[0] for number, texts in enumerate(counts)]
    got, want = list(whole.run(iter(given))), list(alone.run(iter(given)))
    assert [len(vectors) for vectors in got] == counts
    assert all(np.array_equal(one, other) for one, other in zip(got, want, strict=True))
    assert all(member.in_flight == 0 for member in whole.members)


def test_all_devices_work_and_are_counted(whole: EnginePool) -> None:
    before = [value("fletcher_pool_tokens_total", device=name) for name in ("0", "1")]
    vectors_of(whole, batches(60))
    after = [value("fletcher_pool_tokens_total", device=name) for name in ("0", "1")]
    assert all(later > sooner for sooner, later in zip(before, after, strict=True))
    assert value("fletcher_pool_busy_seconds_total", device="1") > 0
    assert value("fletcher_pool_memory_bytes", device="1") > 1 << 20
    assert value("fletcher_pool_batches", device="1") == 0
    assert whole.device.startswith("2 x ")
    assert len(set(whole.pids)) == 2
    assert whole.device_memory()["resident"] == sum(member.memory["resident"] for member in whole.members)
    assert whole.health.devices_out == ()


def test_no_more_is_drawn_than_may_be_out(whole: EnginePool) -> None:
    drawn = taken = most = 0

    def source() -> Iterator[TokenBatch]:
        nonlocal drawn
        for batch in batches(200):
            drawn += 1
            yield batch

    for _ in whole.run(source()):
        most = max(most, drawn - taken)
        taken += 1
    assert taken == 200
    assert most <= 2 * (whole.ahead + 1)


def test_a_device_that_is_much_slower_gets_one_batch_at_a_time_and_answers_it(whole: EnginePool, alone: Any) -> None:
    """An engine does not answer before it has several batches, or is told that there are no more."""
    vectors_of(whole, batches(60))  # so that both rates are known
    whole.members[1].rate.observe(1, 10.0)
    given, most = batches(60), 0
    got = []
    for vectors in whole.run(iter(given), Stop(deadline=time.monotonic() + 60)):
        got.append(vectors.copy())
        if whole.members[1].rate.value < whole.members[0].rate.value / 8:
            most = max(most, whole.members[1].in_flight)
    assert np.array_equal(np.concatenate(got), vectors_of(alone, given))
    assert most <= 1
    whole.members[1].rate = Rate()


def test_a_stream_given_up_halfway_leaves_the_devices_fit_for_the_next(whole: EnginePool, alone: Any) -> None:
    pids = whole.pids
    for taken in (0, 1, 9):
        stream = whole.run(iter(batches(60)))
        for _ in range(taken):
            next(stream)
        stream.close()
        assert np.array_equal(vectors_of(whole, batches(20)), vectors_of(alone, batches(20)))
    assert whole.pids == pids  # nobody was ended for it


def test_a_frozen_device_holds_up_who_gives_a_stream_up_no_longer_than_a_hang_and_is_out(
    made: Callable[..., EnginePool], spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = made([spec, spec], Supervision(hang_floor=0.5), NEVER)
    vectors_of(pool, batches(60))
    patience: list[float] = []
    hear_over = Stream.hear_over
    monkeypatch.setattr(Stream, "hear_over", lambda self, wait: (patience.append(wait), hear_over(self, wait))[1])
    stream = pool.run(iter(batches(60)))
    next(stream)
    os.kill(pool.pids[1], signal.SIGSTOP)
    stream.close()
    assert max(patience) == 0.5
    assert pool.health.devices_out == ("1",)
    assert "does not drop a stream: it hangs" in pool.health.last_failure


def test_it_stops_when_told_to(whole: EnginePool) -> None:
    cancelled = threading.Event()
    stream = whole.run(iter(batches(60)), Stop(cancelled))
    next(stream)
    cancelled.set()
    with pytest.raises(RunCancelled):
        list(stream)
    assert len(vectors_of(whole, batches(3))) == 12


def test_an_interrupt_while_a_stream_ends_leaves_the_devices_fit_for_the_next(
    whole: EnginePool, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids, hear_over = whole.pids, Stream.hear_over
    waiting = [KeyboardInterrupt()]

    def interrupted(self: Stream, patience: float) -> None:
        if waiting:
            raise waiting.pop()
        hear_over(self, patience)

    monkeypatch.setattr(Stream, "hear_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(whole.run(iter(batches(20))))
    assert np.array_equal(vectors_of(whole, batches(20)), vectors_of(alone, batches(20)))
    assert (whole.pids, whole.health.failed) == (pids, 0)


def test_an_error_of_whoever_makes_the_batches_passes_through(whole: EnginePool) -> None:
    def failing() -> Iterator[TokenBatch]:
        yield from batches(5)
        raise ZeroDivisionError("the source")

    with pytest.raises(ZeroDivisionError, match="the source"):
        list(whole.run(failing()))
    assert len(vectors_of(whole, batches(3))) == 12


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_device_that_is_lost_leaves_the_pool_and_comes_back(
    made: Callable[..., EnginePool], spec: EngineSpec, alone: Any, sign: int
) -> None:
    pool = made([spec, spec], PATIENT if sign == signal.SIGKILL else Supervision(hang_floor=1.0), ProbeIntervals(0.2))
    before = value("fletcher_pool_changes_total", device="1", cause="lost")
    got: list[np.ndarray] = []
    impaired, most_out = False, 0

    def source() -> Iterator[TokenBatch]:
        nonlocal most_out
        for number, batch in enumerate(batches(80)):
            most_out = max(most_out, number + 1 - len(got))
            yield batch

    for number, vectors in enumerate(pool.run(source())):
        got.append(vectors.copy())
        if number == 5:
            os.kill(pool.pids[1], sign)
        if pool.health.devices_out and not impaired:
            impaired = True
            assert pool.health.devices_out == ("1",)
            assert pool.health.last_failure.startswith("1 of 2 devices is out; device 1: ")
    assert np.array_equal(np.concatenate(got), vectors_of(alone, batches(80)))
    assert impaired
    assert most_out <= 2 * (pool.ahead + 1) + 1  # also while all waited for the one that was frozen
    assert value("fletcher_pool_changes_total", device="1", cause="lost") == before + 1
    wait_until(lambda: not pool.health.devices_out)
    assert (pool.health.failed, pool.health.taken_back) == (1, 1)
    worked = value("fletcher_pool_tokens_total", device="1")
    assert np.array_equal(vectors_of(pool, batches(80)), vectors_of(alone, batches(80)))
    assert value("fletcher_pool_tokens_total", device="1") > worked


def test_a_device_that_comes_back_in_the_middle_of_a_stream_gets_work(
    made: Callable[..., EnginePool], spec: EngineSpec, alone: Any
) -> None:
    pool = made([spec, spec])
    os.kill(pool.pids[0], signal.SIGKILL)

    def source() -> Iterator[TokenBatch]:
        given = batches(60)
        yield from given[:20]
        wait_until(lambda: pool.health.taken_back == 1)
        yield from given[20:]

    worked = value("fletcher_pool_tokens_total", device="0")
    assert np.array_equal(np.concatenate(list(pool.run(source()))), vectors_of(alone, batches(60)))
    assert value("fletcher_pool_tokens_total", device="0") > worked


def test_a_device_with_wrong_vectors_is_found_by_the_known_batch(
    made: Callable[..., EnginePool], broken: Any, spec: EngineSpec, alone: Any
) -> None:
    pool = made([broken(wrong_after=3), spec], replace(PATIENT, check_every=0.0), NEVER)
    vectors_of(pool, batches(20))
    assert pool.health.devices_out == ("0",)
    assert "computes wrong vectors" in pool.health.last_failure
    assert np.array_equal(vectors_of(pool, batches(20)), vectors_of(alone, batches(20)))


@pytest.mark.parametrize("at_once", [30, 3])
def test_a_device_that_refuses_what_others_compute_is_out_after_some_times(
    made: Callable[..., EnginePool], broken: Any, spec: EngineSpec, alone: Any, at_once: int
) -> None:
    pool = made([broken(refused=ODD), spec], intervals=NEVER)
    given = batches(30, odd=tuple(range(30)))
    for start in range(0, 30, at_once):
        some = given[start : start + at_once]
        assert np.array_equal(vectors_of(pool, some), vectors_of(alone, some))
    assert pool.health.devices_out == ("0",)
    assert "this text is refused" in pool.health.last_failure
    assert value("fletcher_pool_changes_total", device="0", cause="refused") >= 1


def test_a_batch_that_two_devices_refuse_is_given_back_and_no_device_is_out(
    made: Callable[..., EnginePool], broken: Any, spec: EngineSpec, alone: Any
) -> None:
    refusing = broken(refused=ODD)
    pool = made([refusing, refusing], intervals=NEVER)
    given = batches(60, odd=(20,))
    got = []
    with pytest.raises(BatchRefused, match="this text is refused"):
        got.extend(vectors.copy() for vectors in pool.run(iter(given)))
    engine = FailoverEngine(pool, lambda: alone, NEVER)
    for _ in range(2):
        assert np.array_equal(vectors_of(engine, given), vectors_of(alone, given))
    health = engine.health
    assert (health.standing_in, health.devices_out) == (False, ())
    assert health.batches == 2  # that one each time, and none of those that were out with it
    engine.close()


def test_a_text_that_ends_processes_costs_two_of_them_and_the_rest_goes_on(
    made: Callable[..., EnginePool], broken: Any, spec: EngineSpec, alone: Any
) -> None:
    deadly = broken(poison=ODD)
    pool = made([deadly, deadly, deadly], intervals=NEVER)
    engine = FailoverEngine(pool, lambda: alone, NEVER)
    given = batches(60, odd=(20,))
    assert np.array_equal(vectors_of(engine, given), vectors_of(alone, given))
    assert len(pool.health.devices_out) == 2
    assert (engine.health.standing_in, engine.health.batches) == (False, 1)
    engine.close()


def test_when_all_devices_are_out_the_cpu_stands_in_and_then_they_are_back(
    made: Callable[..., EnginePool], spec: EngineSpec, alone: Any
) -> None:
    pool = made([spec, spec], intervals=NEVER)
    engine = FailoverEngine(pool, lambda: alone, SOON)
    got = []
    for number, vectors in enumerate(engine.run(iter(batches(60)))):
        got.append(vectors.copy())
        if number == 5:
            for pid in pool.pids:
                os.kill(pid, signal.SIGKILL)
    assert np.array_equal(np.concatenate(got), vectors_of(alone, batches(60)))
    assert engine.health.batches > 0
    assert "all 2 devices are out" in engine.health.last_failure or engine.health.taken_back
    wait_until(lambda: not engine.health.is_impaired)
    computed = engine.health.batches
    assert np.array_equal(vectors_of(engine, batches(60)), vectors_of(alone, batches(60)))
    assert engine.health.batches == computed
    engine.close()


def test_a_device_that_does_not_start_is_out_until_it_does(
    made: Callable[..., EnginePool], broken: Any, spec: EngineSpec, alone: Any, tmp_path: Path
) -> None:
    flag = tmp_path / "refuse"
    flag.touch()
    ill = broken(refuse_start=str(flag))
    with pytest.raises(EngineError, match="the device cannot be opened"):
        EnginePool([ill, ill], PATIENT, NEVER)
    pool = made([ill, spec], intervals=ProbeIntervals(0.5, 0.5))
    assert pool.health.devices_out == ("0",)
    assert np.array_equal(vectors_of(pool, batches(20)), vectors_of(alone, batches(20)))
    flag.unlink()
    wait_until(lambda: not pool.health.devices_out)
    assert np.array_equal(vectors_of(pool, batches(20)), vectors_of(alone, batches(20)))


def test_a_pool_that_is_closed_while_it_runs_is_lost_and_nobody_starts_it_again(
    made: Callable[..., EnginePool], spec: EngineSpec
) -> None:
    pool = made([spec, spec])
    os.kill(pool.pids[0], signal.SIGKILL)
    stream = pool.run(iter(batches(200)))
    next(stream)
    pool.close()
    with pytest.raises(EngineLost, match="all 2 devices are out"):
        list(stream)
    with pytest.raises(EngineLost, match=r"all 2 devices are out: .*; device 1: closed"):
        vectors_of(pool, batches(3))
    wait_until(lambda: not any(thread.name == "fletcher-probe" for thread in threading.enumerate()))
    assert pool.pids == []


def test_devices_by_setting(tmp_path: Path) -> None:
    for name, content in tiny_models.minilm().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    embedder, other = (Embedder.load(tmp_path, engine="cpu", devices=devices) for devices in (2, None))
    engine = embedder.engine
    assert isinstance(engine, FailoverEngine)
    assert isinstance(engine.primary, EnginePool)
    assert len(engine.primary.members) == 2
    texts = [f"text number {number}" + " and more" * (number % 30) for number in range(60)]
    assert np.allclose(embedder.embed(texts), other.embed(texts), atol=1e-6)
    assert (embedder.health.devices, embedder.health.devices_out) == (2, ())
    embedder.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"devices": 0}, "devices is 0; give a number from 1 to 64, or a list"),
        ({"devices": True}, "devices is True"),
        ({"devices": "2"}, "devices is '2'"),
        ({"devices": []}, "name at least one device"),
        ({"devices": [0, 0]}, "each once"),
        ({"devices": [-1]}, "counted from 0"),
        ({"devices": [0, 1], "engine": "cpu"}, "names GPUs, and engine is 'cpu'"),
        ({"devices": 2, "isolation": "none"}, "devices is 2 and isolation is 'none'"),
        ({"devices": 2}, "there is no GPU here for MLX"),
        ({"devices": [0]}, "there is no GPU here for MLX"),
    ],
)
def test_devices_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str) -> None:
    monkeypatch.setattr("fletcher_core.engines.start._may_run_on_gpu", lambda spec: False)
    with pytest.raises(ConfigError) as refused:
        Embedder.load(**given)
    assert said in str(refused.value)


def test_a_host_with_gpus_has_one_engine_on_each(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Pool:
        def __init__(self, specs: list[EngineSpec]) -> None:
            asked.append([each.device for each in specs])
            raise EngineError("no GPU in truth")

    monkeypatch.setattr("fletcher_core.engines.start._may_run_on_gpu", lambda spec: True)
    monkeypatch.setattr("fletcher_core.engines.start.EnginePool", Pool)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5c,1")
    spec = EngineSpec(str(golden / "bert_tiny"), "bert_tiny", "auto", "auto", True, 128)
    for chosen in (None, 2, [0, 2]):
        start_engine(spec, "auto", chosen)
    assert asked == [["3", "GPU-5c", "1"], ["3", "GPU-5c"], ["3", "1"]]
    with pytest.raises(ConfigError, match="devices is 4, and of GPUs here there are 3"):
        start_engine(spec, "auto", 4)


def test_gpus_are_counted_without_touching_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dev, proc = tmp_path / "dev", tmp_path / "proc"
    monkeypatch.setattr(devices, "_DEV", dev)
    monkeypatch.setattr(devices, "_PROC", proc)
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.visible_gpus() == []
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (proc / name).mkdir(parents=True)
    assert devices.visible_gpus() == ["0", "1", "2"]
    dev.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        (dev / name).touch()
    assert devices.visible_gpus() == ["0", "1"]  # a container's own
    assert devices.environment("1") == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}
    assert devices.environment("") == {}
    for listed, seen in {
        "": [],
        "1": ["1"],
        "2, 0": ["2", "0"],
        "0,-1,1": ["0"],
        "MIG-a,MIG-b": ["MIG-a", "MIG-b"],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert devices.visible_gpus() == seen
    assert devices.environment("1") == {"CUDA_VISIBLE_DEVICES": "1"}


def test_each_worker_sees_its_own_device(spec: EngineSpec) -> None:
    engine = IsolatedEngine(replace(spec, device="5"), PATIENT)
    seen = Path(f"/proc/{engine.pid}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=5" in seen
    engine.close()


_HOST = '''
import os

from fletcher_core.engines.choose import load_engine
from fletcher_core.errors import ConfigError, EngineError


def load(choice, *arguments, **settings):
    """As on a host of whose GPUs the first one does not start, and the second is not there any more."""
    device = os.environ["CUDA_VISIBLE_DEVICES"]
    if choice == "mlx" and device != "2":
        raise EngineError("no memory") if device == "0" else ConfigError("MLX finds no GPU here")
    engine = load_engine("cpu", *arguments, **settings)
    engine.name = "mlx" if choice == "mlx" or device == "2" else engine.name
    return engine
'''


def test_gpus_that_do_not_start_leave_the_others_to_work(
    spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With engine="auto" as well, which takes the CPU on a host whose GPUs all fail."""
    (tmp_path / "host_with_ill_gpus.py").write_text(_HOST)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("fletcher_core.engines.start._may_run_on_gpu", lambda spec: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    auto = replace(spec, choice="auto", precision="auto", loader="host_with_ill_gpus:load")
    engine = start_engine(auto)
    assert isinstance(engine, FailoverEngine)
    assert engine.name == "mlx"
    assert engine.health.devices_out == ("0", "1")
    assert (
        "device 0: no memory; device 1: MLX finds no GPU where CUDA_VISIBLE_DEVICES is '1'"
        in engine.health.last_failure
    )
    assert len(vectors_of(engine, batches(3))) == 12
    engine.close()

"""The GPU engine while it works: memory that runs out, callers that leave, time that is up."""

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from plain_pages import PlainPages, deliver_at_once

from fletcher_core import Embedder
from fletcher_core.admission import Admission
from fletcher_core.engines.mlx import engine as mlx_engine
from fletcher_core.engines.mlx import transfer as transfer_module
from fletcher_core.engines.mlx.batch import FilledBatch
from fletcher_core.engines.mlx.engine import MlxEngine
from fletcher_core.engines.mlx.transfer import StagedTransfers, Transfer
from fletcher_core.errors import ConfigError, DeadlineExceeded, EngineError, RunCancelled
from fletcher_core.models import ModelPackage, load_weights
from fletcher_core.stop import Stop
from fletcher_core.token_budget import TokenBudget
from fletcher_core.tokens import TokenBatch, cumulative

NO_ROOM = "[malloc] Unable to allocate 123456789 bytes."
BUCKETS = (64, 128, 256)


def batch_of(*lengths: int) -> TokenBatch:
    ids = np.random.default_rng(0).integers(0, 1000, sum(lengths)).astype(np.int32)
    return TokenBatch(ids, cumulative(np.array(lengths)))


BATCH = batch_of(*([16] * 16))


@pytest.fixture(scope="module")
def loaded(golden: Path) -> MlxEngine:
    """On MLX's CPU backend, with words for the tokens of a real vocabulary."""
    package = ModelPackage.read(golden / "bert_tiny")
    weights = load_weights(package.folder, package.architecture)
    package = replace(package, architecture=replace(package.architecture, vocab_size=30522), max_length=32)
    weights = replace(weights, words=np.resize(weights.words, (30522, 128)))
    return MlxEngine(package, weights, normalize=True, dimension=128, precision="fp32", on_cpu=True)


@pytest.fixture
def engine(loaded: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlxEngine]:
    """As after loading on a device that takes 256 tokens at a time, and that pages of the host serve.

    Whatever a test does to it, the pages must be free again at its end.
    """
    monkeypatch.setattr(transfer_module, "HostPages", PlainPages)
    monkeypatch.setattr(transfer_module, "deliver", deliver_at_once)
    pages = StagedTransfers()
    monkeypatch.setattr(loaded.flights, "_transfers", pages)
    monkeypatch.setattr(loaded, "buckets", BUCKETS)
    monkeypatch.setattr(loaded.flights, "budget", TokenBudget(BUCKETS, start_tokens=256))
    monkeypatch.setattr(loaded.flights, "admission", Admission(loaded.memory, 1.0))
    yield loaded
    assert not loaded.flights._launched
    assert len(pages._free) == len(pages._all)


@pytest.fixture(scope="module")
def expected(loaded: MlxEngine) -> np.ndarray:
    return np.concatenate(list(loaded.run(BATCH.take(np.array([n])) for n in range(16))))


@pytest.fixture
def sent(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each batch that goes to the device."""
    tokens: list[int] = []
    submit = engine.flights.submit

    def counted(transfer: Transfer, batch: FilledBatch, stop: Stop) -> mx.array:
        tokens.append(batch.tokens)
        return submit(transfer, batch, stop)

    monkeypatch.setattr(engine.flights, "submit", counted)
    return tokens


def assert_usable(engine: MlxEngine, expected: np.ndarray) -> None:
    assert not engine.flights.flying
    (vectors,) = engine.run([BATCH])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_engine_survives_a_consumer_that_stops_early(engine: MlxEngine, expected: np.ndarray) -> None:
    """Peers' defect 1: after an abandoned or failed run the next request must succeed."""
    run = engine.run([BATCH] * 8)
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert_usable(engine, expected)

    def failing() -> Iterator[TokenBatch]:
        yield BATCH
        raise ValueError("tokenizer failed")

    with pytest.raises(ValueError, match="tokenizer failed"):
        list(engine.run(failing()))
    assert_usable(engine, expected)


def refuse(monkeypatch: pytest.MonkeyPatch, engine: MlxEngine, most: int, times: int = 1_000_000) -> list[int]:
    """The device refuses memory for batches of more than `most` tokens when they are sent, so many times."""
    refused: list[int] = []
    submit = engine.flights.submit

    def limited(transfer: Transfer, batch: FilledBatch, stop: Stop) -> mx.array:
        if batch.tokens > most and len(refused) < times:
            refused.append(batch.tokens)
            raise RuntimeError(NO_ROOM)
        return submit(transfer, batch, stop)

    monkeypatch.setattr(engine.flights, "submit", limited)
    return refused


@pytest.mark.parametrize(("most", "times", "refused"), [(0, 1, [64]), (64, 99, [256, 128, 128]), (128, 99, [256])])
def test_a_batch_without_memory_runs_in_halves(
    engine: MlxEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, most: int, times: int, refused: list[int]
) -> None:
    seen = refuse(monkeypatch, engine, most, times)
    first, second, third = engine.run([BATCH.take(np.arange(4)), BATCH, batch_of(3)])
    assert seen == refused
    assert engine.budget.current <= max(most, 64)
    np.testing.assert_allclose(first, expected[:4], atol=1e-5)
    np.testing.assert_allclose(second, expected, atol=1e-5)
    assert third.shape == (1, 128)
    assert_usable(engine, expected)


@pytest.mark.parametrize("before", [0, 2])
def test_memory_that_runs_out_while_the_device_computes_costs_no_vector(
    engine: MlxEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    wait = mx.eval
    failures: list[int] = []

    def failing(*arrays: Any) -> None:
        if len(arrays) == 1 and getattr(arrays[0], "shape", None) == (16, 128):
            failures.append(1)
            raise RuntimeError(NO_ROOM)
        wait(*arrays)

    monkeypatch.setattr(mlx_engine.mx, "eval", failing)
    small = BATCH.take(np.arange(4))
    results = list(engine.run([*[small] * before, BATCH, small, small, small]))
    assert failures
    np.testing.assert_allclose(results[before], expected, atol=1e-5)
    for each in (*results[:before], *results[before + 1 :]):
        np.testing.assert_allclose(each, expected[:4], atol=1e-5)
    assert engine.budget.current <= 128
    assert not engine.flights.flying


def test_one_text_that_the_device_has_no_memory_for_is_an_error_with_its_size(
    engine: MlxEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, engine, 0)
        with pytest.raises(EngineError, match=r"MLX failed on .* 1 texts of 64 tokens: \[malloc\] Unable"):
            list(engine.run([batch_of(30)]))
    assert_usable(engine, expected)


def test_any_other_failure_names_the_device_and_leaves_the_engine_usable(
    engine: MlxEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(_: Transfer, __: FilledBatch, ___: Stop) -> mx.array:
        raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error")

    with monkeypatch.context() as patch:
        patch.setattr(engine.flights, "submit", submit)
        with pytest.raises(EngineError, match=f"MLX failed on {engine.device} with 16 texts.*GPU Timeout"):
            list(engine.run([BATCH, BATCH]))
    assert_usable(engine, expected)


@dataclass
class FakeMemory:
    """A device with room for `limit` tokens at one byte each, as far as admission is concerned."""

    limit: int

    def active(self) -> int:
        return 0

    def peak(self) -> int:
        return 0

    def reset_peak(self) -> None:
        pass

    def release_cache(self) -> None:
        pass


@pytest.mark.parametrize("limit", [150, 300, 600])
def test_batches_wait_for_room_on_the_device(
    engine: MlxEngine, expected: np.ndarray, sent: list[int], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(engine.flights, "admission", Admission(FakeMemory(limit), 1.0))
    in_flight: list[int] = []
    submit = engine.flights.submit

    def watched(transfer: Transfer, batch: FilledBatch, stop: Stop) -> mx.array:
        in_flight.append(batch.tokens + engine.flights.tokens)
        return submit(transfer, batch, stop)

    monkeypatch.setattr(engine.flights, "submit", watched)
    batches = [BATCH.take(np.arange(start, start + 4)) for start in range(0, 16, 4)] * 3
    np.testing.assert_allclose(np.concatenate(list(engine.run(batches))), np.tile(expected, (3, 1)), atol=1e-5)
    assert set(sent) == {64}
    assert max(in_flight) <= limit


def test_a_batch_that_cannot_fit_is_split_before_it_is_sent(
    engine: MlxEngine, expected: np.ndarray, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.flights, "admission", Admission(FakeMemory(150), 1.0))
    for vectors in engine.run([BATCH] * 3):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert set(sent) == {128}
    assert engine.budget.current <= 128
    monkeypatch.setattr(engine.flights, "admission", Admission(FakeMemory(1), 1.0))
    sent.clear()
    (vectors,) = engine.run([batch_of(100)])  # one text is not divisible: the device decides
    assert vectors.shape == (1, 128)
    assert sent == [128]


def test_cancelling_stops_the_stream_at_once(engine: MlxEngine, expected: np.ndarray, sent: list[int]) -> None:
    cancelled = threading.Event()

    def batches() -> Iterator[TokenBatch]:
        for number in range(1000):
            if number == 6:
                cancelled.set()
            yield BATCH

    with pytest.raises(RunCancelled):
        list(engine.run(batches(), Stop(cancelled)))
    assert len(sent) <= 9
    assert_usable(engine, expected)


def test_cancelling_stops_between_two_pieces_of_a_batch(
    engine: MlxEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()
    steps = engine._encoder.steps
    taken: list[int] = []

    def watched(batch: Any) -> Iterator[mx.array]:
        for number, x in enumerate(steps(batch)):
            taken.append(number)
            if number == 1:
                cancelled.set()
            yield x

    with monkeypatch.context() as patch:
        patch.setattr(engine.flights, "tokens_per_second", 1.0)  # a layer is a piece
        patch.setattr(engine._encoder, "steps", watched)
        with pytest.raises(RunCancelled):
            list(engine.run([BATCH], Stop(cancelled)))
    assert max(taken) < engine._package.architecture.layers
    assert_usable(engine, expected)


def test_a_deadline_ends_a_call_and_the_next_one_works(engine: MlxEngine, minilm: Embedder) -> None:
    embedder = Embedder(
        engine._package, engine, minilm.encoder, minilm.encoder, replace(minilm.card, dimension=128), True
    )
    with pytest.raises(DeadlineExceeded, match="allow more time, or send fewer"):
        embedder.embed(["some words to be embedded"] * 20_000, timeout=0.3)
    texts = ["one", "two words", "three little words"]
    vectors = embedder.embed(texts, timeout=60)
    np.testing.assert_allclose(vectors[1], embedder.embed(texts[1:2])[0], atol=1e-5)
    np.testing.assert_allclose(vectors[2], embedder.embed_query(texts[2]), atol=1e-5)


def test_a_slow_host_is_not_taken_for_a_slow_device(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was ready before anybody asked for it says nothing of the device's speed."""
    batch = TokenBatch(np.full(60, 7, np.int32), cumulative(np.array([30, 30])))
    list(engine.run([batch]))
    observed: list[float] = []
    monkeypatch.setattr(engine.budget, "observe", lambda _, seconds: observed.append(seconds))

    def slow() -> Iterator[TokenBatch]:
        for _ in range(8):
            time.sleep(0.3)
            yield batch

    for _ in engine.run(slow()):
        time.sleep(0.3)
    assert all(seconds < 0.3 for seconds in observed)


def test_batch_invariance_is_refused_where_a_stand_in_would_break_it(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine._require(mlx_engine.BATCH_BOUND)
    monkeypatch.setitem(engine.kernels.replaced, "attention", "switched off")
    monkeypatch.setattr(engine.kernels, "uncovered", {"pool", "rope"})
    with pytest.raises(
        ConfigError, match=r"attention switched off; pool does not cover.*turn batch_invariant off.*or fp16 or bf16"
    ):
        engine._require(mlx_engine.BATCH_BOUND)


def test_a_closed_engine_says_so(golden: Path) -> None:
    package = ModelPackage.read(golden / "bert_tiny")
    weights = load_weights(package.folder, package.architecture)
    closed = MlxEngine(package, weights, normalize=True, dimension=128, precision="fp32", on_cpu=True)
    closed.close()
    closed.close()
    with pytest.raises(EngineError, match="this engine is closed: load another one"):
        list(closed.run([BATCH]))


def test_a_batch_that_fails_when_half_of_it_is_queued_leaves_its_pages_to_nobody_too_early(
    engine: MlxEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queued half still reads them: it must have ended before another batch has them."""
    queued: list[mx.array] = []
    steps, waited = engine._encoder.steps, mx.synchronize

    def failing(batch: Any) -> Iterator[mx.array]:
        queued.append(batch.ids)
        yield next(iter(steps(batch)))
        raise RuntimeError(NO_ROOM)

    waits: list[int] = []

    def watched() -> None:
        waits.append(len(queued))
        waited()

    with monkeypatch.context() as patch:
        patch.setattr(engine._encoder, "steps", failing)
        patch.setattr(mx, "synchronize", watched)
        with pytest.raises(EngineError):
            list(engine.run([batch_of(9)]))
    assert waits == list(range(1, len(queued) + 1))
    assert_usable(engine, expected)


@pytest.mark.parametrize("left", [1, 3])
def test_pages_of_batches_that_made_room_and_were_never_collected_come_back(
    engine: MlxEngine, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr(engine.flights, "admission", Admission(FakeMemory(150), 1.0))
    for _ in range(3):
        run = engine.run(BATCH.take(np.arange(4)) for _ in range(9))
        for _ in range(left):
            next(run)
        run.close()  # type: ignore[attr-defined]
    assert_usable(engine, expected)


def test_closing_in_the_middle_of_a_run_gives_everything_back(golden: Path) -> None:
    package = ModelPackage.read(golden / "bert_tiny")
    weights = load_weights(package.folder, package.architecture)
    closed = MlxEngine(package, weights, normalize=True, dimension=128, precision="fp32", on_cpu=True)
    run = closed.run([BATCH] * 6)
    next(run)
    closed.close()
    assert not closed.flights._launched
    run.close()  # type: ignore[attr-defined]


def test_an_engine_that_nobody_has_any_more_gives_everything_back(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModelPackage.read(golden / "bert_tiny")
    weights = load_weights(package.folder, package.architecture)
    lost = MlxEngine(package, weights, normalize=True, dimension=128, precision="fp32", on_cpu=True)
    closings: list[int] = []
    monkeypatch.setattr(lost._transfers, "close", lambda: closings.append(1))
    del lost
    gc.collect()
    assert closings == [1]

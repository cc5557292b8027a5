"""Requests of many callers through one engine: right vectors, in shared batches, within bounds, whatever goes wrong."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from controlled_engine import ControlledEngine, vectors_of, with_engine
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fletcher_core import Embedder
from fletcher_core.batching import Batching
from fletcher_core.cache import VectorCache
from fletcher_core.errors import ConfigError, DeadlineExceeded, EngineError, InputError, Overloaded
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.known import submit_unknown
from fletcher_core.service.settings import BatcherSettings
from fletcher_core.telemetry.metrics import REGISTRY
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.tokenizers import TextEncoder
from fletcher_core.tokens import TokenBatch, cumulative


@pytest.fixture
def engine(minilm: Embedder) -> ControlledEngine:
    return ControlledEngine(minilm.dimension)


@pytest.fixture
def embedder(minilm: Embedder, engine: ControlledEngine) -> Embedder:
    return with_engine(minilm, engine)


@pytest.fixture
def batcher(embedder: Embedder, engine: ControlledEngine) -> Iterator[Batcher]:
    made = Batcher(embedder)
    yield made
    engine.gate.set()
    made.close(10)


def eventually(fact: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if fact():
            return True
        time.sleep(0.005)
    return False


def expected(embedder: Embedder, texts: list[str]) -> np.ndarray:
    return vectors_of(embedder.encoder.encode(texts).sequences, embedder.dimension)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_vectors_are_those_of_the_embedder(
    minilm: Embedder, golden_texts: list[str], golden_vectors: np.ndarray
) -> None:
    batcher = Batcher(minilm, BatcherSettings(request_timeout=600.0))  # on a busy machine these take a minute
    try:
        result = batcher.submit(golden_texts).result(600)
    finally:
        batcher.close(10)
    assert result.sound.all()
    np.testing.assert_allclose(result.vectors, golden_vectors, atol=2e-6)
    np.testing.assert_array_equal(result.token_counts, minilm.encoder.encode(golden_texts).token_counts)


def test_every_caller_gets_its_own_vectors(batcher: Batcher, embedder: Embedder, golden_texts: list[str]) -> None:
    chance = random.Random(7)
    asked: list[tuple[list[str], str]] = []
    for _ in range(300):
        asked.append((chance.choices(golden_texts, k=chance.choice([1, 1, 1, 2, 9, 70])), "documents"))
    with ThreadPoolExecutor(32) as callers:
        results = list(callers.map(lambda one: batcher.submit(one[0]).result(60), asked))
    for (texts, _), result in zip(asked, results, strict=True):
        np.testing.assert_array_equal(result.vectors, expected(embedder, texts))
    assert batcher.queued_tokens == 0
    assert batcher._flying == 0
    assert not batcher._open


def test_arrow_texts_with_nulls_and_tokens_go_beside_texts(
    batcher: Batcher, embedder: Embedder, engine: ControlledEngine
) -> None:
    engine.gate.clear()
    first = batcher.submit(["to hold the engine up"])
    arrow = batcher.submit(pa.array(["one", None, "two three"]))
    tokens = TokenBatch(np.array([101, 7592, 102, 101, 102], np.int32), cumulative(np.array([3, 2])))
    given = batcher.submit(tokens, kind="tokens")
    queries = batcher.submit(["one"], kind="queries")
    engine.gate.set()
    assert first.result(10).sound.all()
    np.testing.assert_array_equal(arrow.result(10).vectors[[0, 2]], expected(embedder, ["one", "two three"]))
    assert arrow.result().sound.tolist() == [True, False, True]
    np.testing.assert_array_equal(given.result(10).vectors, vectors_of(tokens, embedder.dimension))
    np.testing.assert_array_equal(queries.result(10).vectors, expected(embedder, ["one"]))


def test_what_arrives_while_the_engine_computes_shares_its_next_batches(
    batcher: Batcher, engine: ControlledEngine
) -> None:
    engine.gate.clear()
    held = batcher.submit(["hello"])
    assert eventually(lambda: batcher.queued_tokens == 0)
    futures = [batcher.submit([f"text {number}"]) for number in range(40)]
    engine.gate.set()
    for future in (held, *futures):
        assert future.result(10).sound.all()
    # 40 texts of some 5 tokens in batches of 256.
    assert len(engine.batches) <= 4


def test_a_lone_request_waits_for_company_and_no_longer(embedder: Embedder, engine: ControlledEngine) -> None:
    batcher = Batcher(embedder, BatcherSettings(window_seconds=0.3))
    try:
        began = time.monotonic()
        futures = [batcher.submit(["a"]), batcher.submit(["b"])]
        for future in futures:
            future.result(10)
        assert time.monotonic() - began >= 0.29
        assert len(engine.batches) == 1
    finally:
        batcher.close(5)


def test_a_full_batch_has_no_need_of_company(embedder: Embedder) -> None:
    settings = BatcherSettings()
    object.__setattr__(settings, "window_seconds", 60.0)  # more than may be set: no machine is so slow
    batcher = Batcher(embedder, settings)
    try:
        batcher.submit(["word " * 300] * 4).result(20)
    finally:
        batcher.close(5)


def test_a_large_request_does_not_hold_up_a_small_one(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.seconds = 0.01
    large = batcher.submit([f"text {number} of a large request" for number in range(2000)])
    time.sleep(0.05)
    assert batcher.submit(["a small one"]).result(10).sound.all()
    assert not large.done()
    engine.seconds = 0.0
    assert len(large.result(30).vectors) == 2000


def test_small_requests_that_keep_coming_do_not_starve_a_large_one(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.seconds = 0.001
    large = batcher.submit([f"text {number} of a large request" for number in range(500)])
    ended = threading.Event()

    def keep_asking() -> None:
        while not ended.is_set():
            batcher.submit(["small"]).result(30)

    with ThreadPoolExecutor(8) as callers:
        asking = [callers.submit(keep_asking) for _ in range(8)]
        try:
            assert len(large.result(60).vectors) == 500
        finally:
            ended.set()
        for each in asking:
            each.result(10)


def test_a_full_queue_turns_requests_away_at_once(embedder: Embedder, engine: ControlledEngine) -> None:
    batcher = Batcher(embedder, BatcherSettings(max_queue_tokens=1000))
    engine.gate.clear()
    before = counted("fletcher_rejected_requests_total", reason="overload")
    try:
        # An idle service takes what would never have room.
        futures = [batcher.submit(["word " * 100] * 200)]
        assert eventually(lambda: batcher._flying > 0)
        refused: list[Overloaded] = []
        for number in range(1000):
            try:
                futures.append(batcher.submit([f"a text, the one with number {number}"]))
            except Overloaded as error:
                refused.append(error)
        assert refused
        assert all(error.retry_after >= 1 and "wait for the engine" in str(error) for error in refused)
        assert counted("fletcher_rejected_requests_total", reason="overload") - before == len(refused)
        assert counted("fletcher_queue_tokens") == batcher.queued_tokens > 0
        engine.gate.set()
        for future in futures:
            assert future.result(30).sound.all()
        assert batcher.submit(["again"]).result(10).sound.all()
    finally:
        engine.gate.set()
        batcher.close(10)


def test_a_queue_longer_than_the_time_allows_turns_requests_away(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.seconds = 0.02
    batcher.submit(["word " * 50] * 200).result(60)  # so that the rate is known
    assert batcher.rate > 0
    slow = batcher.submit([f"{number} " + "word " * 50 for number in range(400)])
    with pytest.raises(Overloaded):
        batcher.submit(["in a hurry"], seconds=0.2)
    patient = batcher.submit(["not in a hurry"], seconds=60)
    engine.seconds = 0.0
    assert patient.result(30).sound.all()
    assert slow.result(30).sound.all()


def test_a_cancelled_request_gives_its_room_back_and_is_not_computed(
    batcher: Batcher, engine: ControlledEngine
) -> None:
    engine.gate.clear()
    held = batcher.submit(["hello"])
    assert eventually(lambda: batcher.queued_tokens == 0)
    dropped = batcher.submit(["nobody waits for this"] * 50)
    kept = batcher.submit(["somebody waits for this"])
    assert dropped.cancel()
    assert eventually(lambda: batcher.queued_tokens < 20)
    engine.gate.set()
    assert kept.result(10).sound.all()
    assert held.result(10).sound.all()
    assert engine.texts == 2
    assert batcher.queued_tokens == 0


def test_while_the_engine_hangs_nothing_is_kept_of_requests_that_were_given_up(
    batcher: Batcher, engine: ControlledEngine
) -> None:
    engine.gate.clear()
    hanging = batcher.submit(["hangs"])
    assert eventually(lambda: batcher.queued_tokens == 0)
    for number in range(100):
        assert batcher.submit([f"text {number}"]).cancel()
    assert batcher.queued_tokens == 0
    assert not batcher._queue
    engine.gate.set()
    assert hanging.result(10).sound.all()
    for _ in range(100):  # also while an idle engine waits for company
        batcher.submit(["text"]).cancel()
    assert batcher.submit(["text"]).result(10).sound.all()


def test_a_request_whose_time_is_up_is_not_computed(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.gate.clear()
    held = batcher.submit(["hello"])
    assert eventually(lambda: batcher.queued_tokens == 0)
    late = batcher.submit(["too late"], seconds=0.05)
    time.sleep(0.1)
    engine.gate.set()
    with pytest.raises(DeadlineExceeded):
        late.result(10)
    assert held.result(10).sound.all()
    assert engine.texts == 1
    assert batcher.queued_tokens == 0


def test_a_text_that_the_engine_fails_on_costs_the_others_nothing(
    batcher: Batcher, embedder: Embedder, engine: ControlledEngine
) -> None:
    engine.poison = int(embedder.encoder.encode(["zebra"]).sequences.ids[1])
    engine.gate.clear()
    held = batcher.submit(["hello"])
    assert eventually(lambda: batcher.queued_tokens == 0)
    bad = batcher.submit(["good", "a zebra"])
    good = batcher.submit(["good too"])
    engine.gate.set()
    assert good.result(10).sound.all()
    assert held.result(10).sound.all()
    assert bad.result(10).sound.tolist() == [True, False]
    assert bad.result().failed == {1: "the device does not like this text"}


def test_a_text_that_is_no_unicode_costs_the_others_nothing(batcher: Batcher, embedder: Embedder) -> None:
    result = batcher.submit(["good", "bad \udc80", "good too"]).result(10)
    assert [bad.row for bad in result.invalid] == [1]
    assert result.sound.tolist() == [True, False, True]
    np.testing.assert_array_equal(result.vectors[[0, 2]], expected(embedder, ["good", "good too"]))


def test_a_broken_engine_fails_who_waits_for_it_and_the_next_request_gets_its_chance(
    batcher: Batcher, engine: ControlledEngine
) -> None:
    engine.failure = EngineError("the device is gone")
    with pytest.raises(EngineError, match="the device is gone"):
        batcher.submit(["a", "b"]).result(10)
    engine.failure = None
    assert batcher.submit(["a", "b"]).result(10).sound.all()


def test_an_error_that_nobody_planned_for_ends_no_thread(batcher: Batcher, engine: ControlledEngine) -> None:
    before = counted("fletcher_panics_total", where="batcher")
    engine.failure = ZeroDivisionError("oh")
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        batcher.submit(["a"]).result(10)
    assert counted("fletcher_panics_total", where="batcher") == before + 1
    engine.failure = None
    assert batcher.submit(["a"]).result(10).sound.all()
    assert batcher.queued_tokens == 0
    assert not batcher._open


def test_an_error_before_the_engine_is_told_to_who_waits(
    batcher: Batcher, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = embedder.encoder.encode

    def without_room(texts: Any) -> Any:
        if texts == ["large"]:
            raise MemoryError("no room")
        return encode(texts)

    monkeypatch.setattr(embedder.encoder, "encode", without_room)
    with pytest.raises(EngineError, match="MemoryError"):
        batcher.submit(["large"]).result(10)
    assert batcher.submit(["small"]).result(10).sound.all()


def test_what_is_no_text_is_refused_before_it_is_put_beside_others(batcher: Batcher) -> None:
    with pytest.raises(InputError, match="text 1 is bytes"):
        batcher.submit(["one", b"two"])  # type: ignore[list-item]


def test_who_keeps_a_vector_does_not_keep_its_window(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.gate.clear()
    held = batcher.submit(["to hold the engine up"])
    assert eventually(lambda: batcher.queued_tokens == 0)
    together = [batcher.submit([f"text {number}"]) for number in range(20)]
    engine.gate.set()
    assert held.result(10).sound.all()
    for future in together:
        vectors = future.result(10).vectors
        assert (vectors if vectors.base is None else vectors.base).nbytes == vectors.nbytes


def test_a_rate_of_a_slow_time_is_not_held_against_requests_for_ever(minilm: Embedder) -> None:
    engine = ControlledEngine(minilm.dimension, Batching("packed", 2048))
    batcher = Batcher(with_engine(minilm, engine))
    try:
        engine.seconds = 0.15
        for future in [batcher.submit(["word " * 100] * 20, seconds=100) for _ in range(14)]:
            future.result(60)
        slow = batcher.rate
        assert 0 < slow < 20_000
        engine.seconds = 0.0
        for _ in range(100):  # never so much that a batch is half full
            batcher.submit(["word " * 100] * 9).result(10)
        assert batcher.rate > 1.5 * slow
    finally:
        batcher.close(5)


def test_vectors_that_are_not_sound_are_computed_by_another_engine(minilm: Embedder) -> None:
    broken, second = ControlledEngine(minilm.dimension), ControlledEngine(minilm.dimension)
    broken.flaw = float("nan")
    embedder = with_engine(minilm, broken, lambda: second)
    batcher = Batcher(embedder)
    try:
        result = batcher.submit(["one", "two"]).result(10)
        assert result.sound.all()
        assert result.retried == 2
        np.testing.assert_array_equal(result.vectors, expected(embedder, ["one", "two"]))
        # A probe asks for the engine in use: nobody else may answer in its place.
        assert not batcher.probe(5).result(10).sound.any()
        second.flaw = 0.0
        assert not batcher.submit(["one"]).result(10).sound.any()
    finally:
        batcher.close(5)


def test_long_texts_are_joined_from_their_chunks(minilm: Embedder) -> None:
    chunked = TextEncoder(minilm.encoder.tokenizer, 32, "chunk", 4)
    embedder = Embedder(
        minilm.package, minilm.engine, chunked, minilm.query_encoder, minilm.card, minilm.normalize, None, None
    )
    texts = ["short", "a much longer text than that " * 20, "another short one", "long again " * 60]
    batcher = Batcher(embedder)
    try:
        result = batcher.submit(texts).result(60)
    finally:
        batcher.close(5)
    assert result.sound.all()
    assert result.cut.tolist() == [False, True, False, True]
    np.testing.assert_allclose(result.vectors, embedder.embed(texts), atol=2e-6)


def test_it_ends_when_what_waits_is_done(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.seconds = 0.005
    futures = [batcher.submit([f"text {number}"]) for number in range(30)]
    batcher.close(30)
    assert all(future.result(0).sound.all() for future in futures)
    with pytest.raises(Overloaded, match="ending"):
        batcher.submit(["too late"])


def test_it_ends_in_time_when_the_engine_hangs(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.gate.clear()
    engine.flaw = float("nan")
    hanging = batcher.submit(["hangs"])
    assert eventually(lambda: batcher.queued_tokens == 0)
    waiting = batcher.submit(["waits"])
    began, panics = time.monotonic(), counted("fletcher_panics_total", where="batcher")
    batcher.close(0.2)
    assert time.monotonic() - began < 20  # the engine hangs until the test lets it go
    for future in (hanging, waiting):
        with pytest.raises(Overloaded):
            future.result(0)
    engine.gate.set()  # what comes back after all is nobody's any more
    batcher._thread.join(10)
    assert counted("fletcher_panics_total", where="batcher") == panics


def test_whatever_callers_do_nothing_is_left_behind(
    batcher: Batcher, embedder: Embedder, engine: ControlledEngine
) -> None:
    chance = random.Random(3)
    engine.poison = int(embedder.encoder.encode(["zebra"]).sequences.ids[1])
    wrong: list[str] = []

    def caller(seed: int) -> None:
        own = random.Random(seed)
        for number in range(40):
            texts = [
                f"{own.choice(['text', 'zebra', 'note'])} {seed} {own.randrange(99)}"
                for _ in range(own.choice([1, 3, 80]))
            ]
            try:
                future = batcher.submit(texts, seconds=own.choice([0.0005, 5, 30]))
                if own.random() < 0.2:
                    future.cancel()
                result = future.result(60)
            except (Overloaded, DeadlineExceeded, CancelledError):
                continue
            good = np.array(["zebra" not in text for text in texts])
            if result.sound.tolist() != good.tolist():
                wrong.append(f"{seed} {number}: {result.failed}")
            elif not np.array_equal(result.vectors[good], expected(embedder, texts)[good]):
                wrong.append(f"{seed} {number}: other vectors")

    threads = [threading.Thread(target=caller, args=(chance.randrange(10**6),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert eventually(lambda: batcher.queued_tokens == 0 and not batcher._flying and not batcher._open)


def test_no_window_is_kept_while_requests_keep_coming(batcher: Batcher, engine: ControlledEngine) -> None:
    engine.seconds = 0.002
    ended = threading.Event()

    def keep_asking() -> None:
        while not ended.is_set():
            batcher.submit(["word " * 30]).result(30)

    with ThreadPoolExecutor(8) as callers:
        asking = [callers.submit(keep_asking) for _ in range(8)]
        time.sleep(1)
        open_windows = len(batcher._open)
        ended.set()
        for each in asking:
            each.result(10)
    assert len(engine.batches) > 50
    assert open_windows <= 6


def test_known_texts_do_not_go_to_the_engine(minilm: Embedder, engine: ControlledEngine) -> None:
    embedder = with_engine(minilm, engine)
    embedder.cache = VectorCache(1_000_000)
    batcher = Batcher(embedder)
    try:
        first = submit_unknown(batcher, ["one", "two"]).result(10)
        again = submit_unknown(batcher, ["two", "three", "one"]).result(10)
        assert engine.texts == 3
        np.testing.assert_array_equal(again.vectors, expected(embedder, ["two", "three", "one"]))
        assert again.token_counts.tolist() == [0, 3, 0]
        assert again.sound.all()
        all_known = submit_unknown(batcher, ["one"]).result(10)
        np.testing.assert_array_equal(all_known.vectors[0], first.vectors[0])
        # A query is another thing than a document, and a vector that is not sound is nothing to keep.
        submit_unknown(batcher, ["one"], kind="queries").result(10)
        engine.flaw = float("nan")
        assert not submit_unknown(batcher, ["four", "one"]).result(10).sound[0]
        engine.flaw = None
        assert submit_unknown(batcher, ["four"]).result(10).sound.all()
        engine.gate.clear()
        waiting: Future[EmbeddedTexts] = submit_unknown(batcher, ["five"])
        assert waiting.cancel()
        engine.gate.set()
    finally:
        engine.gate.set()
        batcher.close(5)


def test_a_cache_that_fails_leaves_nobody_waiting(
    minilm: Embedder, engine: ControlledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = with_engine(minilm, engine)
    embedder.cache = VectorCache(1_000_000)
    monkeypatch.setattr(VectorCache, "put_many", lambda *_: 1 / 0)
    batcher = Batcher(embedder)
    try:
        with pytest.raises(ZeroDivisionError):
            submit_unknown(batcher, ["one"]).result(10)
    finally:
        batcher.close(5)


def test_a_batch_is_linked_to_the_requests_that_it_serves(
    batcher: Batcher, engine: ControlledEngine, spans: InMemorySpanExporter
) -> None:
    tracer = trace.get_tracer("test")
    engine.gate.clear()
    held = batcher.submit(["hello"])
    assert eventually(lambda: batcher.queued_tokens == 0)
    requests, futures = [tracer.start_span("request") for _ in range(3)], []
    for number, request in enumerate(requests):
        with trace.use_span(request):
            futures.append(batcher.submit([f"text {number}"]))
    engine.gate.set()
    for future in (held, *futures):
        future.result(10)
    assert eventually(lambda: any(span.name == "batch" for span in spans.get_finished_spans()))
    (batch,) = [span for span in spans.get_finished_spans() if span.name == "batch"]
    assert {link.context.span_id for link in batch.links} == {each.get_span_context().span_id for each in requests}
    inside = {
        span.name for span in spans.get_finished_spans() if span.parent and span.parent.span_id == batch.context.span_id
    }
    assert inside == {"tokenize", "compute"}
    assert sum(span.name == "queue" for span in spans.get_finished_spans()) == 3


@pytest.mark.parametrize("bad", [{"window_seconds": -1}, {"max_queue_tokens": 0}, {"request_timeout": 0}])
def test_a_setting_that_cannot_work_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        BatcherSettings(**bad)  # type: ignore[arg-type]

"""An embedder with a cache gives what it gives without one, and computes neither known nor repeated texts."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fletcher_core import Embedder
from fletcher_core.batching import WINDOW
from fletcher_core.cache import VectorCache
from fletcher_core.errors import ConfigError, EngineError, FletcherError, InputError
from fletcher_core.tokens import TokenBatch

BUDGET = 2**24


class Counting:
    """An engine that counts the sequences that it is given, and can spoil vectors."""

    def __init__(self, engine: Any, name: str | None = None):
        self.engine = engine
        self.name = name or engine.name
        self.sequences = 0
        self.spoilt_length = 0

    def run(self, batches: Iterable[TokenBatch], *stop: Any) -> Iterator[np.ndarray]:
        lengths: list[np.ndarray] = []

        def counted() -> Iterator[TokenBatch]:
            for batch in batches:
                self.sequences += len(batch)
                lengths.append(batch.lengths)
                yield batch

        for vectors in self.engine.run(counted(), *stop):
            spoilt = lengths.pop(0) == self.spoilt_length
            yield np.where(spoilt[:, None], np.float32(np.nan), vectors)

    def since(self) -> int:
        """Sequences since the last time that this was asked."""
        count, self.sequences = self.sequences, 0
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def like(other: Embedder, cache: VectorCache | None = None, name: str | None = None) -> tuple[Embedder, Counting]:
    """The same model behind a counting engine."""
    engine = Counting(other.engine, name)
    parts = (other.package, engine, other.encoder, other.query_encoder, other.card, other.normalize, cache)
    return Embedder(*parts), engine


@pytest.fixture
def cached(minilm: Embedder) -> tuple[Embedder, Counting]:
    return like(minilm, VectorCache(BUDGET))


def test_known_texts_are_not_computed_again(
    cached: tuple[Embedder, Counting], minilm: Embedder, golden_texts: list[str]
) -> None:
    embedder, engine = cached
    texts = golden_texts[:60]
    different = len(set(texts))
    expected = minilm.embed(texts)
    assert np.array_equal(embedder.embed(texts[:20]), expected[:20])
    assert np.array_equal(embedder.embed(texts), expected)
    assert engine.since() == different
    assert np.array_equal(embedder.embed(texts[::-1]), expected[::-1])
    assert engine.since() == 0
    statistics = embedder.cache.statistics()  # type: ignore[union-attr]
    assert statistics.entries == statistics.misses == different
    assert statistics.hits > different


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()])
def test_lists_and_every_kind_of_arrow_array_share_entries(
    cached: tuple[Embedder, Counting], minilm: Embedder, kind: pa.DataType
) -> None:
    embedder, engine = cached
    expected = embedder.embed(["one", "zwei ü"])
    engine.since()
    array = pa.array([b"x", b"one", None, b"two", b"zwei \xc3\xbc", b"two"], pa.binary()).cast(kind).slice(1)
    for column in (array, pa.chunked_array([array.slice(0, 2), array.slice(2)])):
        for _ in range(2):
            vectors = embedder.embed_arrow(column)
            assert vectors.is_null().to_pylist() == [False, True, False, False, False]
            found = np.array([vector or [0.0] * 384 for vector in vectors.to_pylist()], np.float32)
            assert np.array_equal(found[[0, 3]], expected)
            assert np.array_equal(found[[2, 4]], minilm.embed(["two", "two"]))
    assert engine.since() == 1
    assert len(embedder.embed_arrow(pa.array([None, None], kind if kind != pa.binary() else pa.string()))) == 2
    (batch,) = embedder.embed_batches(pa.record_batch({"body": array}), "body", dataset="mails")
    assert batch.num_columns == 2
    assert engine.since() == 0
    assert embedder.cache.statistics("mails").hits == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "computed"), [("openvino", 3), ("mlx", 8)])
def test_without_a_cache_equal_texts_are_computed_once_where_looking_for_them_is_cheap(
    minilm: Embedder, name: str, computed: int
) -> None:
    embedder, engine = like(minilm, name=name)
    texts = ["a", "b", "a", "a", "c", "b", "c", "c"]
    expected = minilm.embed(["a", "b", "c"])[[0, 1, 0, 0, 2, 1, 2, 2]]
    assert np.allclose(embedder.embed(texts), expected, atol=1e-6)
    assert engine.since() == computed
    vectors = embedder.embed_arrow(pa.array([*texts, None]))
    assert np.allclose(vectors.slice(0, 8).flatten().to_numpy().reshape(8, -1), expected, atol=1e-6)
    assert engine.since() == computed


def test_repetitions_are_found_across_windows_and_misses_of_several_make_one(
    cached: tuple[Embedder, Counting], minilm: Embedder
) -> None:
    embedder, engine = cached
    texts = [f"text {n % 50}" for n in range(3 * WINDOW)]
    texts[WINDOW + 7], texts[2 * WINDOW + 9] = "rare", "rarer"
    expected = minilm.embed([f"text {n}" for n in range(50)])[np.arange(3 * WINDOW) % 50]
    expected[[WINDOW + 7, 2 * WINDOW + 9]] = minilm.embed(["rare", "rarer"])
    assert np.array_equal(embedder.embed(texts), expected)
    assert engine.since() == 52
    assert np.array_equal(embedder.embed(pa.array(texts)), expected)
    assert engine.since() == 0


def test_a_cache_too_small_for_the_call_changes_nothing(minilm: Embedder, golden_texts: list[str]) -> None:
    embedder, _ = like(minilm, VectorCache(3 * VectorCache.entry_bytes(384)))
    for _ in range(2):
        assert np.array_equal(embedder.embed(golden_texts[:40]), minilm.embed(golden_texts[:40]))
    statistics = embedder.cache.statistics()  # type: ignore[union-attr]
    assert statistics.entries == 3
    assert statistics.bytes == statistics.budget_bytes


def test_queries_are_cached_and_kept_apart_from_texts_of_another_prompt(golden_texts: list[str]) -> None:
    cache = VectorCache(BUDGET)
    apart = Embedder.load(precision="fp32", query_prompt="query: ", cache=cache)
    text = golden_texts[0]
    query, document = apart.embed_query(text), apart.embed([text])[0]
    assert not np.array_equal(query, document)
    assert cache.statistics().entries == 2
    assert np.array_equal(apart.embed_query(text, dataset="asked"), query)
    assert np.array_equal(apart.embed([text])[0], document)
    assert cache.statistics("asked").hits == 1
    assert np.array_equal(Embedder.load(precision="fp32", query_prompt="query: ").embed_query(text), query)


def test_a_query_takes_the_vector_of_a_text_under_the_same_prompt(cached: tuple[Embedder, Counting]) -> None:
    embedder, engine = cached
    (vector,) = embedder.embed(["the same"])
    engine.since()
    found = embedder.embed_query("the same")
    assert engine.since() == 0
    assert np.array_equal(found, vector)
    found[:] = 0  # the caller's own
    assert np.array_equal(embedder.embed_query("the same"), vector)


def test_models_that_differ_share_a_cache_but_no_vectors() -> None:
    cache, text = VectorCache(BUDGET), "word " * 100
    settings: list[dict[str, Any]] = [
        {},
        {"max_length": 16},
        {"max_length": 16, "long_text": "chunk", "chunk_overlap": 2},
    ]
    for chosen in settings:
        with_cache = Embedder.load(precision="fp32", cache=cache, **chosen)
        expected = Embedder.load(precision="fp32", **chosen).embed([text, "short"])
        for _ in range(2):
            assert np.array_equal(with_cache.embed([text, "short"]), expected)
    assert cache.statistics().entries == cache.statistics().hits == 6
    with pytest.raises(ConfigError, match="holds vectors of 384 elements, not 64"):
        Embedder.load(precision="fp32", dimension=64, cache=cache)


def test_a_precision_of_its_own_has_vectors_of_its_own(minilm: Embedder) -> None:
    cache = VectorCache(BUDGET)
    one, _ = like(minilm, cache)
    other, engine = like(minilm)
    engine.precision = "bf16"  # type: ignore[attr-defined]
    other.cache = cache
    one.embed(["a"])
    other.embed(["a"])
    assert engine.since() == 1


@pytest.fixture(scope="module")
def strict() -> Embedder:
    """Refuses texts of more than 32 tokens."""
    return Embedder.load(precision="fp32", max_length=32, long_text="error")


def bad_inputs() -> list[tuple[str, Any]]:
    fine, long = [f"fine {n}" for n in range(WINDOW + 3)], "word " * 100
    return [
        ("a lone surrogate", ["a", "x\ud800", "b", "x\ud800"]),
        ("bytes that are no UTF-8", pa.array([b"a", b"\xff", b"b"])),
        ("a long text", ["a", "b", long, "c", long]),
        ("a long text before an invalid one of the next window", [*fine[:100], long, *fine[100:], "\udfff"]),
        ("an invalid text after a long one of its window", ["a", long, "\ud800"]),
        ("a null", pa.array(["a", None])),
    ]


@pytest.mark.parametrize("texts", [pytest.param(texts, id=name) for name, texts in bad_inputs()])
def test_errors_are_the_same_word_for_word(strict: Embedder, texts: Any) -> None:
    strict.cache, strict._find_equal = None, False
    with pytest.raises(FletcherError) as expected:
        strict.embed(texts)
    strict.cache = VectorCache(BUDGET)
    known = texts.drop_null().to_pylist() if isinstance(texts, pa.Array) else texts
    for fill in ([], [text for text in known if text in ("a", "b") or str(text).startswith("fine")]):
        if fill:
            strict.embed(fill)
        with pytest.raises(type(expected.value)) as found:
            strict.embed(texts)
        assert str(found.value) == str(expected.value)


def test_a_bad_vector_is_never_kept(cached: tuple[Embedder, Counting]) -> None:
    embedder, engine = cached
    engine.spoilt_length = 4
    for _ in range(2):
        with pytest.raises(EngineError, match="the vector of text 1 is not finite"):
            embedder.embed(["one", "one two", "one two three"])
        with pytest.raises(EngineError, match="the vector of the query is not finite"):
            embedder.embed_query("two three")
    engine.spoilt_length = 0
    assert np.isfinite(embedder.embed(["one two"])).all()
    assert np.isfinite(embedder.embed_query("two three")).all()


def test_known_texts_do_not_wait_for_the_engine(cached: tuple[Embedder, Counting]) -> None:
    embedder, _ = cached
    expected = embedder.embed(["a", "b"])
    embedder.embed_query("a")
    done: list[np.ndarray] = []
    with embedder._turn:  # another caller computes
        thread = threading.Thread(target=lambda: done.extend([embedder.embed(["b", "a"]), embedder.embed_query("a")]))
        thread.start()
        thread.join(10)
    assert len(done) == 2
    assert np.array_equal(done[0], expected[::-1])


def test_threads_share_a_small_cache_and_get_their_own_vectors(minilm: Embedder, golden_texts: list[str]) -> None:
    embedder, _ = like(minilm, VectorCache(20 * VectorCache.entry_bytes(384), shards=2))
    texts = [text for text in golden_texts if len(text) < 60][:60]
    expected = minilm.embed(texts)
    wrong: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(8):
            chosen = random.integers(0, len(texts), 12)
            if not np.array_equal(embedder.embed([texts[at] for at in chosen]), expected[chosen]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_cache_can_be_taken_away(cached: tuple[Embedder, Counting]) -> None:
    embedder, engine = cached
    embedder.embed(["a"])
    embedder.cache = None
    embedder.embed(["a"])
    embedder.embed_query("a")
    assert engine.since() == 3
    with pytest.raises(InputError, match="the query holds a lone surrogate"):
        embedder.embed_query("\ud800")

"""The cache of vectors against a dictionary, its budget against the allocator, and many threads against each other."""

import threading
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fletcher_core.cache import VectorCache
from fletcher_core.errors import ConfigError

DIMENSION = 4
DATASETS = st.sampled_from(["", "a", "b"])
TEXT = st.integers(0, 40).map(str)
TEXTS = st.lists(TEXT, max_size=12)


def vectors_of(texts: Iterable[str], dimension: int = DIMENSION) -> np.ndarray:
    """[n, dimension]; no other number's text has the same vector."""
    return np.array([[int(text) + 1] * dimension for text in texts], np.float32).reshape(-1, dimension)


def cache_of(entries: int, shards: int = 8, dimension: int = DIMENSION) -> VectorCache:
    return VectorCache(entries * VectorCache.entry_bytes(dimension), shards=shards)


class Evicting(RuleBasedStateMachine):
    """Any sequence of calls on a cache of 9 entries in 3 shards, beside a dictionary from texts to their datasets.

    What comes back is that text's vector, what the dictionary lacks never does, and nothing is beyond the budget.
    """

    entries, shards, exact = 9, 3, False

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of(self.entries, self.shards)
        self.cache.settle(DIMENSION)
        self.keys = self.cache.text_keys(b"model")
        self.model: dict[str, str] = {}
        self.hits = self.misses = 0

    @rule(texts=TEXTS, dataset=DATASETS)
    def put_many(self, texts: list[str], dataset: str) -> None:
        self.cache.put_many(self.keys.keys(texts), vectors_of(texts), dataset)
        for text in texts:
            self.model.setdefault(text, dataset)
        for text in texts[-1:]:  # the last one cannot have been evicted by another
            assert self.look_up(text, "") is not None

    @rule(texts=TEXTS, dataset=DATASETS)
    def get_many(self, texts: list[str], dataset: str) -> None:
        out = np.zeros((len(texts) + 1, DIMENSION), np.float32)
        rows = np.arange(len(texts), 0, -1)
        hits = self.cache.get_many(self.keys.keys(texts), out, rows, dataset)
        self.hits += int(hits.sum())
        self.misses += int((~hits).sum())
        assert np.array_equal(out[rows], vectors_of(texts) * hits[:, None])
        self.agrees(texts, hits.tolist())

    @rule(text=TEXT, dataset=DATASETS)
    def get(self, text: str, dataset: str) -> None:
        vector = self.look_up(text, dataset)
        assert vector is None or np.array_equal(vector, vectors_of([text])[0])
        self.agrees([text], [vector is not None])

    @rule(dataset=DATASETS)
    def drop(self, dataset: str) -> None:
        held = self.cache.statistics(dataset).entries
        assert self.cache.drop(dataset) == held
        assert dataset not in self.cache.datasets()
        if self.exact:
            assert held == sum(owner == dataset for owner in self.model.values())
            self.model = {text: owner for text, owner in self.model.items() if owner != dataset}

    @invariant()
    def nothing_exceeds_the_budget(self) -> None:
        found = self.cache.statistics()
        assert found.bytes == found.entries * VectorCache.entry_bytes(DIMENSION) <= found.budget_bytes

    @invariant()
    def counters_add_up(self) -> None:
        total = self.cache.statistics()
        assert (total.hits, total.misses) == (self.hits, self.misses)
        assert total.entries == sum(self.cache.statistics(name).entries for name in self.cache.datasets())
        assert total.entries == sum(self.look_up(text, "") is not None for text in self.model)
        assert not (self.exact and total.evictions)

    def look_up(self, text: str, dataset: str) -> np.ndarray | None:
        vector = self.cache.get(self.keys.key(text), dataset)
        self.hits += vector is not None
        self.misses += vector is None
        return vector

    def agrees(self, texts: list[str], hits: list[bool]) -> None:
        for text, hit in zip(texts, hits, strict=True):
            assert hit == (text in self.model) if self.exact else hit <= (text in self.model)


class Roomy(Evicting):
    """The same with room for all texts in every shard: the cache is that dictionary."""

    entries, shards, exact = 41 * 5, 5, True


Evicting.TestCase.settings = Roomy.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestEvicting = Evicting.TestCase
TestRoomy = Roomy.TestCase


def test_what_was_asked_for_again_outlives_what_was_not() -> None:
    cache = cache_of(4, shards=1)
    keys = cache.text_keys(b"model")
    for text in "0123":
        cache.put_many([keys.key(text)], vectors_of([text]))
    assert cache.get(keys.key("0")) is not None
    for text in ("4", "5", "6"):
        cache.put_many([keys.key(text)], vectors_of([text]))
    there = [text for text in "0123456" if cache.get(keys.key(text)) is not None]
    assert there == ["0", "4", "5", "6"]
    assert cache.statistics().evictions == 3


def test_more_than_fits_leaves_the_last_ones() -> None:
    cache = cache_of(5, shards=1)
    keys = cache.text_keys(b"model")
    texts = [str(n) for n in range(23)]
    cache.put_many(keys.keys(texts), vectors_of(texts))
    out = np.zeros((23, DIMENSION), np.float32)
    hits = cache.get_many(keys.keys(texts), out)
    assert np.flatnonzero(hits).tolist() == [18, 19, 20, 21, 22]
    assert np.array_equal(out[18:], vectors_of(texts[18:]))


def test_spaces_and_caches_share_no_keys() -> None:
    cache = cache_of(9)
    one, other = cache.text_keys(b"model"), cache.text_keys(b"model 2")
    assert [one.key("x")] == one.keys(["x"]) == one.keys([b"x"]) == [cache.text_keys(b"model").key("x")]
    assert len({one.key("x"), other.key("x"), one.key("y"), cache_of(9).text_keys(b"model").key("x")}) == 4
    assert one.keys(["x", "y", "x\ud800"]) == [one.key("x"), one.key("y"), one.key("x\ud800")]
    assert one.keys([]) == []


def test_a_vector_that_is_not_finite_is_not_kept() -> None:
    cache = cache_of(9)
    keys = cache.text_keys(b"model").keys(["1", "2", "3"])
    vectors = np.ones((3, DIMENSION), np.float32)
    vectors[0, 1], vectors[2, 0] = np.nan, np.inf
    cache.put_many(keys, vectors)
    assert [cache.get(key) is not None for key in keys] == [False, True, False]


def test_vectors_that_come_back_are_copies() -> None:
    cache = cache_of(9)
    key = cache.text_keys(b"model").key("1")
    given_vector = vectors_of(["1"])
    cache.put_many([key], given_vector)
    given_vector[:] = 7
    found = cache.get(key)
    assert found is not None
    found[:] = 9
    assert np.array_equal(cache.get(key), vectors_of(["1"])[0])  # type: ignore[arg-type]


def test_datasets_are_counted_apart_and_dropped_alone() -> None:
    cache = cache_of(80)
    keys = cache.text_keys(b"model")
    for dataset, texts in (("mails", ["1", "2", "3"]), ("chats", ["3", "4"])):
        cache.put_many(keys.keys(texts), vectors_of(texts), dataset)
    assert cache.datasets() == ["chats", "mails"]
    assert [cache.statistics(name).entries for name in ("mails", "chats", "none")] == [3, 1, 0]
    assert cache.get(keys.key("4"), "chats") is not None
    assert cache.get(keys.key("9"), "chats") is None
    assert cache.statistics("chats").hit_rate == 0.5
    assert cache.drop("mails") == 3
    assert [cache.get(keys.key(text)) is not None for text in "1234"] == [False, False, False, True]
    assert cache.statistics().hits == 2


def test_settings_that_cannot_work_are_refused() -> None:
    for budget, shards in ((0, 1), (-1, 1), (1.5, 1), (True, 1), (10_000, 0), (10_000, 257)):
        with pytest.raises(ConfigError, match="of the vector cache is"):
            VectorCache(budget, shards=shards)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is 100; one vector of this model takes 1776"):
        VectorCache(100).settle(384)
    cache = cache_of(9)
    cache.settle(DIMENSION)
    with pytest.raises(ConfigError, match="vectors of 4 elements, not 5: make another"):
        cache.put_many([b"k" * 16], np.ones((1, 5), np.float32))


def test_a_new_cache_answers_with_nothing() -> None:
    cache = VectorCache(10_000)
    key = cache.text_keys(b"model").key("1")
    assert cache.get(key) is None
    assert cache.get_many([key], np.zeros((1, 3), np.float32)).tolist() == [False]
    assert cache.get_many([], np.zeros((0, 3), np.float32)).tolist() == []
    assert cache.drop("none") == 0
    assert cache.statistics().hit_rate == 0.0


@pytest.mark.parametrize("dimension", [4, 384])
def test_the_allocator_sees_no_more_than_the_budget(dimension: int) -> None:
    budget = 8 * 2**20
    rows = np.ones((1024, dimension), np.float32)
    tracemalloc.start()
    try:
        cache = VectorCache(budget)
        keys = cache.text_keys(b"model")
        most = 0
        for start in range(0, 80_000, 1024):  # beyond what fits, so that the dictionaries hold traces of the evicted
            cache.put_many(keys.keys([str(n) for n in range(start, start + 1024)]), rows)
            most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    statistics = cache.statistics()
    assert statistics.evictions > 0
    assert 0.9 * budget < statistics.bytes <= budget
    assert most < budget


def test_threads_never_see_another_texts_vector() -> None:
    cache = cache_of(300, shards=4, dimension=64)
    keys = cache.text_keys(b"model")
    cache.settle(64)
    wrong: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for step in range(150):
            texts = [str(n) for n in random.integers(0, 1000, 64)]
            made = keys.keys(texts)
            out = np.zeros((64, 64), np.float32)
            hits = cache.get_many(made, out, dataset=f"d{seed % 3}")
            expected = vectors_of(texts, 64)
            if not np.array_equal(out[hits], expected[hits]):
                wrong.append(f"bulk, thread {seed}, step {step}")
            one = cache.get(made[0])
            if one is not None and not np.array_equal(one, expected[0]):
                wrong.append(f"single, thread {seed}, step {step}")
            cache.put_many(made, expected, f"d{seed % 3}")
            if step % 40 == seed:
                cache.drop(f"d{seed % 3}")
            statistics = cache.statistics()
            if statistics.bytes > statistics.budget_bytes:
                wrong.append(f"budget, thread {seed}, step {step}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    statistics = cache.statistics()
    assert statistics.hits + statistics.misses == 6 * 150 * 65
    assert statistics.entries <= 300
    assert statistics.entries == sum(cache.statistics(name).entries for name in cache.datasets())

"""What a hit in the cache of vectors costs, and what embed() gains by it.

Run: .venv/bin/python bench/cache.py [--entries N] [--texts N] [--json FILE]

First the cost of a hit in microseconds a text, on real texts in random order and float32 vectors of 384 elements, from
text to vector: hashing it, looking the key up (measured on vectors of one element), copying the vector. In bulk, by
windows of 2,048 as embed() does it, and one by one as embed_query() does. The peer is an OrderedDict from texts to
arrays, LRU by moving to the end, without a lock. Then embed() with none, half and all of its texts known, and without a
cache. Medians of nine; the target is 2 us a text. The cost of a hit is the processor time of its thread, all of it
work, so that it holds on a shared machine; rates of embed() are of the wall clock, in turns.
"""

import argparse
import time
from collections import OrderedDict
from collections.abc import Callable
from statistics import median

import numpy as np
from results import JSON_OPTION, Row, write_results
from texts import mixed_texts

from fletcher_core import Embedder
from fletcher_core.batching import WINDOW
from fletcher_core.cache import TextKeys, VectorCache

DIMENSION = 384
TARGET_US = 2.0
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=20_000, help="texts in the cache")
    parser.add_argument("--texts", type=int, default=512, help="texts that embed() gets")
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    texts = mixed_texts(options.entries)
    np.random.default_rng(0).shuffle(texts)
    print(f"{len(texts):,} texts of {sum(map(len, texts)) / len(texts):.0f} characters, {DIMENSION} elements")
    rows = [*hit_costs(texts), *finding_equal_texts(texts), *embedding(texts[: options.texts])]
    write_results(options.json, "cache", rows)


def hit_costs(texts: list[str]) -> list[Row]:
    """The split of a hit, in bulk and one by one."""
    wide, narrow = filled(texts, DIMENSION), filled(texts, 1)
    peer = OrderedDict((text, np.ones(DIMENSION, np.float32)) for text in texts)
    rows = []
    print(f"{'us a text':<12}{'hash':>8}{'look-up':>9}{'copy':>8}{'a hit':>8}{'OrderedDict':>13}")
    for name, hashed, read, read_peer in (
        ("bulk", hash_windows, read_windows, peer_windows),
        ("one by one", hash_each, read_each, peer_each),
    ):
        hashing, looking, whole, theirs = (
            microseconds(lambda call=call, given=given: call(given, texts), len(texts))
            for call, given in ((hashed, wide), (read, narrow), (read, wide), (read_peer, peer))
        )
        split = {"hash": hashing, "look-up": looking - hashing, "copy": whole - looking}
        print(
            f"{name:<12}{hashing:>8.2f}{split['look-up']:>9.2f}{split['copy']:>8.2f}{whole:>8.2f}{theirs:>13.2f}",
            end="",
        )
        print(f"   {'within' if whole < TARGET_US else 'ABOVE'} the target of {TARGET_US} us")
        rows += [Row(f"{name}, {part}", round(value, 3), "us") for part, value in split.items()]
        rows.append(Row(f"{name}, a hit", round(whole, 3), "us", "OrderedDict", round(theirs / whole, 3)))
    return rows


def filled(texts: list[str], dimension: int) -> tuple[VectorCache, TextKeys]:
    """A cache that holds every text, with room for an uneven spread over the shards."""
    cache = VectorCache(2 * len(texts) * VectorCache.entry_bytes(dimension))
    keys = cache.text_keys(b"bench")
    for start in range(0, len(texts), WINDOW):
        part = texts[start : start + WINDOW]
        cache.put_many(keys.keys(part), np.ones((len(part), dimension), np.float32))
    assert cache.statistics().entries == len(texts)
    return cache, keys


def hash_windows(given: tuple[VectorCache, TextKeys], texts: list[str]) -> None:
    for start in range(0, len(texts), WINDOW):
        given[1].keys(texts[start : start + WINDOW])


def read_windows(given: tuple[VectorCache, TextKeys], texts: list[str]) -> None:
    cache, keys = given
    out = np.ones((WINDOW, cache.dimension), np.float32)
    for start in range(0, len(texts), WINDOW):
        assert cache.get_many(keys.keys(texts[start : start + WINDOW]), out).all()


def peer_windows(given: "OrderedDict[str, np.ndarray]", texts: list[str]) -> None:
    out = np.ones((WINDOW, DIMENSION), np.float32)
    for start in range(0, len(texts), WINDOW):
        for row, text in enumerate(texts[start : start + WINDOW]):
            out[row] = given[text]
            given.move_to_end(text)


def hash_each(given: tuple[VectorCache, TextKeys], texts: list[str]) -> None:
    key = given[1].key
    for text in texts:
        key(text)


def read_each(given: tuple[VectorCache, TextKeys], texts: list[str]) -> None:
    get, key = given[0].get, given[1].key
    for text in texts:
        get(key(text))


def peer_each(given: "OrderedDict[str, np.ndarray]", texts: list[str]) -> None:
    for text in texts:
        given[text].copy()
        given.move_to_end(text)


def finding_equal_texts(texts: list[str]) -> list[Row]:
    """What embed() pays without a cache to notice that no two texts are equal."""
    seconds = []
    for _ in range(ROUNDS):
        unseen = [text.encode().decode() for text in texts]  # str objects that were never hashed before
        start = time.thread_time()
        place: dict[str, int] = {}
        np.fromiter(map(place.setdefault, unseen, range(len(unseen))), np.int64, len(unseen))
        seconds.append(time.thread_time() - start)
    cost = median(seconds) / len(texts) * 1e6
    print(f"finding equal texts among a list of str: {cost:.2f} us a text")
    return [Row("finding equal texts", round(cost, 3), "us")]


def embedding(texts: list[str]) -> list[Row]:
    """Texts a second through embed() with a share of them known."""
    embedder = Embedder.load()
    known = embedder.embed(texts)
    shares = {"no cache": None, "0 % hits": 0, "50 % hits": 50, "100 % hits": 100}
    seconds: dict[str, list[float]] = {name: [] for name in shares}
    for _ in range(ROUNDS):  # in turns, so that what else the machine does hits all alike
        for name, share in shares.items():
            seconds[name].append(embed_seconds(embedder, texts, share, known))
    rates = {name: len(texts) / median(each) for name, each in seconds.items()}
    for name, rate in rates.items():
        print(f"embed() of {len(texts)} texts, {name:<10}{rate:>12,.0f} texts/s{rate / rates['no cache']:>10.2f}x")
    one = single_hit(embedder, texts)
    print(f"embed([text]) and embed_query(text) of a known text: {one[0]:.1f} and {one[1]:.1f} us")
    rows = [
        Row(f"embed(), {name}", round(rate, 1), "texts/s", "no cache", round(rate / rates["no cache"], 3))
        for name, rate in rates.items()
    ]
    return [*rows, Row("embed([text]), a hit", one[0], "us"), Row("embed_query(text), a hit", one[1], "us")]


def embed_seconds(embedder: Embedder, texts: list[str], share: int | None, known: np.ndarray) -> float:
    """Seconds of embed() with `share` percent of the texts in the cache; without a cache for None."""
    embedder.cache = None if share is None else VectorCache(64 * 2**20)
    if share:
        embedder.embed(texts[:: 100 // share])
    start = time.perf_counter()
    vectors = embedder.embed(texts)
    seconds = time.perf_counter() - start
    assert np.array_equal(vectors, known) or embedder.engine.name == "mlx"
    return seconds


def single_hit(embedder: Embedder, texts: list[str]) -> tuple[float, float]:
    """Microseconds of one call with one known text: embed and embed_query."""
    embedder.cache = VectorCache(64 * 2**20)
    some = texts[:64]
    embedder.embed(some)
    for text in some:
        embedder.embed_query(text)
    embed = microseconds(lambda: [embedder.embed([text]) for text in some * 16], 16 * len(some))
    query = microseconds(lambda: [embedder.embed_query(text) for text in some * 16], 16 * len(some))
    return round(embed, 2), round(query, 2)


def microseconds(action: Callable[[], object], count: int) -> float:
    """The median of nine, in processor time a text; the first round warms up and does not count."""
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.thread_time()
        action()
        seconds.append(time.thread_time() - start)
    return median(seconds[1:]) / count * 1e6


if __name__ == "__main__":
    main()

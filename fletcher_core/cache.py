"""Vectors of texts that were embedded before, in memory: keys of texts in, their vectors out, within a budget of bytes.

A key is a 128-bit salted hash of a text within a key space, that is one model with one set of settings. Vectors lie in
one float32 slab a shard; a shard has one lock, held for a few microseconds. What goes when a shard is full, CLOCK
decides (Corbató, "A Paging Experiment with the Multics System", 1968): an approximation of LRU that only sets a byte
on a hit, and in which texts that were never asked for again go first.
"""

import hashlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import cast

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import ConfigError
from fletcher_core.telemetry.metrics import CACHE_REQUESTS
from fletcher_core.tokens import Int64

Vectors = npt.NDArray[np.float32]

KEY_BYTES = 16
# What an entry costs beside its vector, at most: the key (49 bytes, 64 allocated), its slot's number (32), its place in
# the dictionary (24 bytes and 4 of index, up to 120 just after it grew), two list places (16), the byte of CLOCK.
ENTRY_OVERHEAD = 240


@dataclass(frozen=True)
class CacheStatistics:
    """Counters since the cache was made. `hits` and `misses` in look-ups; `evictions` and `entries` in vectors; `bytes`
    what the entries hold, overhead included, of `budget_bytes`."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int
    budget_bytes: int

    @property
    def hit_rate(self) -> float:
        """Share of the look-ups that found a vector, 0 to 1."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class TextKeys:
    """Makes the keys of texts in one key space: BLAKE2b of their UTF-8 bytes, 16 bytes long.

    The cache's secret is the salt of the hash, so that nobody can prepare two texts that collide; BLAKE2b's own key
    would do the same for one more block a text, a third of the time.
    """

    def __init__(self, secret: bytes, space: bytes):
        person = hashlib.blake2b(space, digest_size=hashlib.blake2b.PERSON_SIZE).digest()
        # Quicker to copy than to make anew: the settings are in it already.
        self._copy = hashlib.blake2b(digest_size=KEY_BYTES, salt=secret, person=person).copy

    def key(self, text: str) -> bytes:
        """The key of one text; a lone surrogate is hashed as it stands."""
        state = self._copy()
        try:
            state.update(text.encode())
        except UnicodeEncodeError:
            state.update(_surrogates(text))
        return state.digest()

    def keys(self, texts: Sequence[str] | Sequence[bytes]) -> list[bytes]:
        """The keys of many texts, in their order; of bytes the same as of the str that they encode."""
        copy, found = self._copy, []
        for data in _utf8(texts):
            state = copy()
            state.update(data)
            found.append(state.digest())
        return found


def _utf8(texts: Sequence[str] | Sequence[bytes]) -> Iterable[bytes]:
    if texts and isinstance(texts[0], bytes):
        return cast("Sequence[bytes]", texts)
    try:
        return list(map(str.encode, cast("Sequence[str]", texts)))
    except UnicodeEncodeError:
        return map(_surrogates, cast("Sequence[str]", texts))


def _surrogates(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class VectorCache:
    """A cache of vectors, safe to use from several threads; several embedders of one dimension may share it.

    Its memory is reserved when the first embedder or vector settles the dimension, and used as entries come.

    Args:
        budget_bytes: the most memory that entries take, vectors and overhead together.
        shards: parts with a lock of their own; fewer where the budget is for fewer vectors.

    Raises:
        ConfigError: a setting cannot work.
    """

    def __init__(self, budget_bytes: int, *, shards: int = 8):
        for name, value, most in (("budget_bytes", budget_bytes, 2**63), ("shards", shards, 256)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ConfigError(
                    f"{name} of the vector cache is {value!r}; it must be a whole number from 1 to {most}"
                )
        self.budget_bytes = budget_bytes
        self.dimension = 0
        self._wanted_shards = shards
        self._shards: tuple[_Shard, ...] = ()
        self._gets: tuple[Callable[[bytes, str], Vectors | None], ...] = ()  # theirs, found once
        self._settling = threading.Lock()
        self._secret = os.urandom(KEY_BYTES)

    def text_keys(self, space: bytes) -> TextKeys:
        """What makes keys for `space`; texts of different spaces never share an entry."""
        return TextKeys(self._secret, space)

    def settle(self, dimension: int) -> None:
        """Take vectors of `dimension` elements from now on.

        Raises:
            ConfigError: the cache has another dimension already, or its budget does not hold one vector.
        """
        with self._settling:
            if self.dimension:
                if dimension != self.dimension:
                    raise ConfigError(
                        f"the vector cache holds vectors of {self.dimension} elements, not {dimension}: "
                        "make another for this model"
                    )
                return
            capacity = self.budget_bytes // self.entry_bytes(dimension)
            if not capacity:
                raise ConfigError(
                    f"budget_bytes of the vector cache is {self.budget_bytes}; one vector of this model takes "
                    f"{self.entry_bytes(dimension)}"
                )
            count = min(self._wanted_shards, capacity)
            self._shards = tuple(_Shard(capacity // count, dimension) for _ in range(count))
            self._gets = tuple(shard.get for shard in self._shards)
            self.dimension = dimension
            _settled.add(self)
            weakref.finalize(self, _remember, self._shards).atexit = False

    @staticmethod
    def entry_bytes(dimension: int) -> int:
        """Bytes of the budget that one vector takes."""
        return 4 * dimension + ENTRY_OVERHEAD

    def get(self, key: bytes, dataset: str = "") -> Vectors | None:
        """A copy of the vector of `key`, float32 [dim], or None."""
        gets = self._gets
        return gets[key[0] % len(gets)](key, dataset) if gets else None

    def get_many(
        self, keys: Sequence[bytes], out: Vectors, rows: Int64 | None = None, dataset: str = ""
    ) -> npt.NDArray[np.bool_]:
        """Copies the vectors that are there into `out`.

        Args:
            keys: n of them.
            out: float32 [m, dim]; only rows of hits are written.
            rows: int64 [n], the row of `out` for each key; None for 0 to n - 1.
            dataset: whose look-ups these are, for the counters.

        Returns:
            bool [n], which keys are hits.
        """
        hits = np.zeros(len(keys), dtype=bool)
        for shard, members in self._by_shard(keys):
            targets = members if rows is None else rows[members]
            hits[members] = shard.read([keys[at] for at in members.tolist()], out, targets, dataset)
        return hits

    def put_many(self, keys: Sequence[bytes], vectors: Vectors, dataset: str = "") -> None:
        """Keeps `vectors` (float32 [n, dim]) under `keys`, for `dataset`.

        A key that is there already keeps its vector and its dataset. A vector with an element that is not finite is
        passed over.

        Raises:
            ConfigError: the vectors have another dimension than the cache.
        """
        self.settle(vectors.shape[1])
        finite = np.logical_and.reduce(np.isfinite(vectors), axis=1)
        for shard, members in self._by_shard(keys):
            good = members[finite[members]]
            shard.write([keys[at] for at in good.tolist()], vectors[good], dataset)

    def drop(self, dataset: str) -> int:
        """Forgets the entries that `dataset` brought and its counters; returns how many entries went."""
        return sum(shard.drop(dataset) for shard in self._shards)

    def datasets(self) -> list[str]:
        """The datasets that were named in a call and not dropped, sorted."""
        return sorted({name for shard in self._shards for name in shard.names()})

    def statistics(self, dataset: str | None = None) -> CacheStatistics:
        """The counters of everything, or of the calls and entries of one dataset."""
        total = _Tally()
        for shard in self._shards:
            shard.add_to(total, dataset)
        size = total.entries * self.entry_bytes(self.dimension)
        return CacheStatistics(total.hits, total.misses, total.evictions, total.entries, size, self.budget_bytes)

    def _by_shard(self, keys: Sequence[bytes]) -> "Iterator[tuple[_Shard, Int64]]":
        """Each shard that some of the keys belong to, with the places of those keys, ascending."""
        if not self._shards or not len(keys):
            return
        count = len(self._shards)
        of = np.frombuffer(b"".join(keys), np.uint8)[::KEY_BYTES] % count
        order = np.argsort(of, kind="stable")
        ends = np.cumsum(np.bincount(of, minlength=count))
        for shard, start, end in zip(self._shards, [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            if end > start:
                yield shard, order[start:end]


class _Tally:
    """Counters of one dataset in one shard."""

    __slots__ = ("entries", "evictions", "hits", "misses")

    def __init__(self) -> None:
        self.hits = self.misses = self.evictions = self.entries = 0

    def add(self, other: "_Tally") -> None:
        self.hits += other.hits
        self.misses += other.misses
        self.evictions += other.evictions
        self.entries += other.entries


class _Shard:
    """`capacity` slots with a vector each, and the dictionary from keys to slots. All state is behind `_lock`."""

    def __init__(self, capacity: int, dimension: int):
        self._lock = threading.Lock()
        self._capacity = capacity
        self._vectors = np.empty((capacity, dimension), dtype=np.float32)
        self._slots: dict[bytes, int] = {}
        self._keys: list[bytes | None] = [None] * capacity
        self._owners: list[_Tally | None] = [None] * capacity
        # CLOCK's bits, a byte each, as two views of one memory: bytes are set and searched fastest through the one,
        # many at once through the other.
        self._used = bytearray(capacity)
        self._used_many = np.frombuffer(self._used, dtype=np.uint8)
        self._hand = 0
        self._fresh = 0  # slots from here on were never filled
        self._free: list[int] = []  # slots that a drop left empty
        self._tallies: dict[str, _Tally] = {}
        self._dropped = _Tally()

    def get(self, key: bytes, dataset: str) -> Vectors | None:
        self._lock.acquire()  # half the time of a with statement, which shows here
        try:
            tally = self._tallies.get(dataset) or self._tally(dataset)
            slot = self._slots.get(key)
            if slot is None:
                tally.misses += 1
                return None
            tally.hits += 1
            self._used[slot] = 1
            return self._vectors[slot].copy()
        finally:
            self._lock.release()

    def read(self, keys: list[bytes], out: Vectors, rows: Int64, dataset: str) -> npt.NDArray[np.bool_]:
        with self._lock:
            slots = np.fromiter(map(self._slots.get, keys, repeat(-1)), np.int64, len(keys))
            found = slots >= 0
            if found.all():
                out[rows] = self._vectors[slots]
                self._used_many[slots] = 1
            elif found.any():
                out[rows[found]] = self._vectors[slots[found]]
                self._used_many[slots[found]] = 1
            hits = int(np.count_nonzero(found))
            tally = self._tally(dataset)
            tally.hits += hits
            tally.misses += len(keys) - hits
        return found

    def write(self, keys: list[bytes], vectors: Vectors, dataset: str) -> None:
        with self._lock:
            tally = self._tally(dataset)
            filled: dict[int, int] = {}  # slot -> row: a later row may take the slot of an earlier one
            for row, key in enumerate(keys):
                if key in self._slots:
                    continue
                slot = self._empty_slot()
                self._slots[key] = slot
                self._keys[slot], self._owners[slot] = key, tally
                tally.entries += 1
                filled[slot] = row
            self._vectors[list(filled)] = vectors[list(filled.values())]

    def drop(self, dataset: str) -> int:
        with self._lock:
            tally = self._tallies.pop(dataset, None)
            if tally is None:
                return 0
            mine = [slot for slot, owner in enumerate(self._owners) if owner is tally]
            for slot in mine:
                self._vacate(slot)
            self._free += mine
            self._dropped.add(tally)  # its look-ups stay in the totals
            return len(mine)

    def names(self) -> list[str]:
        with self._lock:
            return list(self._tallies)

    def add_to(self, total: _Tally, dataset: str | None) -> None:
        with self._lock:
            if dataset is None:
                total.add(self._dropped)
            for name, tally in self._tallies.items():
                if dataset in (None, name):
                    total.add(tally)

    def _tally(self, dataset: str) -> _Tally:
        return self._tallies.setdefault(dataset, _Tally())

    def _empty_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if self._fresh < self._capacity:
            self._fresh += 1
            return self._fresh - 1
        slot = self._victim()
        owner = self._vacate(slot)
        owner.evictions += 1
        return slot

    def _victim(self) -> int:
        """CLOCK: the first slot from the hand on that was not used since the hand last came by."""
        slot = self._used.find(0, self._hand)
        if slot < 0:
            self._used_many[self._hand :] = 0
            self._hand = 0
            slot = self._used.find(0)
        self._used_many[self._hand : slot] = 0
        self._hand = (slot + 1) % self._capacity
        return slot

    def _vacate(self, slot: int) -> _Tally:
        key, owner = self._keys[slot], self._owners[slot]
        assert key is not None
        assert owner is not None
        del self._slots[key]
        self._keys[slot] = self._owners[slot] = None
        self._used[slot] = 0
        owner.entries -= 1
        return owner


_settled: "weakref.WeakSet[VectorCache]" = weakref.WeakSet()
# (hits, misses) of caches that are gone. Appending needs no lock, which garbage collection might find held.
_gone: deque[tuple[int, int]] = deque([(0, 0)])
_looking = threading.Lock()


def _remember(shards: tuple[_Shard, ...]) -> None:
    """A cache goes; its look-ups were made all the same."""
    _gone.append(_lookups(shards))


def _lookups(shards: Iterable[_Shard]) -> tuple[int, int]:
    total = _Tally()
    for shard in shards:
        shard.add_to(total, None)
    return total.hits, total.misses


def _requests() -> dict[str, int]:
    """Of all caches of this process, for `CACHE_REQUESTS`: what look-ups are counted for already."""
    with _looking:
        present = [_lookups(cache._shards) for cache in list(_settled)]
        gone = [_gone.popleft() for _ in range(len(_gone))]
        _gone.append((sum(hits for hits, _ in gone), sum(misses for _, misses in gone)))
        counts = [*present, *gone]
    return {"hit": sum(hits for hits, _ in counts), "miss": sum(misses for _, misses in counts)}


CACHE_REQUESTS.ask(_requests)

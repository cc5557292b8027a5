"""An engine of the test's: it can be held, broken and counted."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fletcher_core import Embedder
from fletcher_core.batching import Batching
from fletcher_core.errors import EngineError
from fletcher_core.stop import NEVER, Stop
from fletcher_core.tokens import TokenBatch


class ControlledEngine:
    """Vectors of unit length that say what tokens they were made of, at once, or as the test wants.

    Attributes: `gate` (cleared, batches wait), `failure` (raised instead of vectors), `flaw` (a value that vectors
    become), `poison` (a token that it fails on), `seconds` a batch takes; `batches` and `texts` that went through.
    """

    name, device, precision, ahead = "controlled", "here", "fp32", 2

    def __init__(self, dimension: int, batching: Batching | None = None) -> None:
        self.dimension = dimension
        self.batching = batching or Batching("packed", 256)
        self.gate = threading.Event()
        self.gate.set()
        self.failure: BaseException | None = None
        self.flaw: float | None = None
        self.poison: int | None = None
        self.seconds = 0.0
        self.batches: list[TokenBatch] = []
        self.lengths: Counter[int] = Counter()

    @property
    def texts(self) -> int:
        return sum(map(len, self.batches))

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[np.ndarray]:
        flying: list[TokenBatch] = []
        for batch in batches:
            flying.append(batch)
            if len(flying) == self.ahead:
                yield self._compute(flying.pop(0))
        while flying:
            yield self._compute(flying.pop(0))

    def device_memory(self) -> dict[str, int]:
        return {}

    def _compute(self, batch: TokenBatch) -> np.ndarray:
        self.gate.wait()
        if self.seconds:
            time.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        if self.poison is not None and self.poison in batch.ids:
            raise EngineError("the device does not like this text")
        self.batches.append(batch)
        vectors = vectors_of(batch, self.dimension)
        if self.flaw is not None:
            vectors[:] = self.flaw
        return vectors


def vectors_of(batch: TokenBatch, dimension: int) -> np.ndarray:
    """What the engine gives: each its own, whatever it is computed beside."""
    rows = []
    for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        ids = batch.ids[start:end].astype(np.float64)
        seed = np.sin(ids * np.arange(1, len(ids) + 1)).sum()
        rows.append(np.cos(seed * np.arange(1, dimension + 1)))
    vectors = np.array(rows)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def with_engine(embedder: Embedder, engine: Any, second: Any = None, **encoders: Any) -> Embedder:
    """`embedder` with another engine, and the one that `second` makes for a second look."""
    read = encoders.get("encoder", embedder.encoder), embedder.query_encoder
    return Embedder(embedder.package, engine, *read, embedder.card, True, None, second)

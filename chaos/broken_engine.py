"""An engine that fails as it is told to, for workers: `EngineSpec(loader="chaos.broken_engine:load")`.

The faults come from the environment variable FLETCHER_BROKEN_ENGINE, as JSON of `Faults`.
"""

import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fletcher_core.batching import Batching
from fletcher_core.engines.choose import load_engine
from fletcher_core.engines.engine import Engine
from fletcher_core.errors import EngineError
from fletcher_core.stop import NEVER, Stop
from fletcher_core.tokens import TokenBatch

VARIABLE = "FLETCHER_BROKEN_ENGINE"


@dataclass(frozen=True)
class Faults:
    """Batches are counted from 1 in each process; 0 is never.

    Args:
        only: name of the engine to break; "" breaks all.
        allocation, exception, hang, abort: every so many batches the engine fails so.
        once: a file; the faults by count happen only while it is not there, and make it.
        nan_share: of the texts, chosen by their tokens, that get a vector of NaN.
        poison, refused: a text with this token makes the engine abort, or raise.
        wrong_after: from this batch on the vectors are other ones.
        refuse_start: the engine cannot be loaded while this file is there.
        words: bytes that it writes to standard error for each batch, and a line after them.
    """

    only: str = ""
    allocation: int = 0
    exception: int = 0
    hang: int = 0
    abort: int = 0
    once: str = ""
    nan_share: float = 0.0
    poison: int = -1
    refused: int = -1
    wrong_after: int = 0
    refuse_start: str = ""
    words: int = 0


def load(*arguments: Any, **settings: Any) -> Engine:
    """As `load_engine`."""
    engine = load_engine(*arguments, **settings)
    faults = Faults(**json.loads(os.environ.get(VARIABLE, "{}")))
    if faults.only not in ("", engine.name):
        return engine
    if faults.refuse_start and Path(faults.refuse_start).exists():
        raise EngineError("chaos: the device cannot be opened")
    return BrokenEngine(engine, faults)


class BrokenEngine:
    """`engine` with `faults`."""

    def __init__(self, engine: Engine, faults: Faults) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.dimension, self.ahead = engine.dimension, engine.ahead
        self._engine = engine
        self._faults = faults
        self._count = 0

    @property
    def batching(self) -> Batching:
        """See `Engine`."""
        return self._engine.batching

    def device_memory(self) -> dict[str, int]:
        """See `Engine`."""
        return self._engine.device_memory()

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[npt.NDArray[np.float32]]:
        """See `Engine`."""
        sent: list[TokenBatch] = []

        def broken() -> Iterator[TokenBatch]:
            for batch in batches:
                self._count += 1
                self._fail(batch)
                sent.append(batch)
                yield batch

        for vectors in self._engine.run(broken(), stop):
            batch = sent.pop(0)
            if self._faults.wrong_after and self._count >= self._faults.wrong_after:
                vectors = np.roll(vectors, 1, axis=1)
            if self._faults.nan_share:
                vectors = vectors.copy()
                vectors[[is_chosen(batch, row, self._faults.nan_share) for row in range(len(batch))]] = np.nan
            yield vectors

    def _fail(self, batch: TokenBatch) -> None:
        faults = self._faults
        if faults.words:
            print("x" * faults.words, "the last word", sep="\n", file=sys.stderr, flush=True)
        if faults.poison >= 0 and (batch.ids == faults.poison).any():
            os.abort()
        if faults.refused >= 0 and (batch.ids == faults.refused).any():
            raise EngineError("chaos: this text is refused")
        if faults.once and Path(faults.once).exists():
            return
        due = [name for name in ("allocation", "exception", "hang", "abort") if self._is_due(getattr(faults, name))]
        if due and faults.once:
            Path(faults.once).touch()
        if "allocation" in due:
            raise EngineError("chaos: no memory on the device for a single text")
        if "exception" in due:
            raise RuntimeError("chaos: the engine has a defect")
        if "hang" in due:
            time.sleep(3600)
        if "abort" in due:
            os.abort()

    def _is_due(self, every: int) -> bool:
        return bool(every) and self._count % every == 0


def is_chosen(batch: TokenBatch, row: int, share: float) -> bool:
    """Whether a text is among the share of them that go wrong: by its tokens, so that it is always the same ones."""
    ids = batch.ids[batch.cu_seqlens[row] : batch.cu_seqlens[row + 1]]
    return zlib.crc32(ids.tobytes()) % 10_000 < share * 10_000

"""A text that no engine computes costs the others nothing: a batch that fails is halved until the text is found.

In: batches and an engine. Out: for each batch its vectors, and what the engine says of the texts that it fails on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fletcher_core.engines.engine import Engine
from fletcher_core.engines.unanswered import Unanswered
from fletcher_core.errors import EngineError
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.metrics import BATCH_TOKENS, PADDING, TOKENS, VECTORS
from fletcher_core.tokens import TokenBatch

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Computed:
    """Vectors of a batch, float32 [n, dim], and by its row what the engine said of each text that it failed on, whose
    vector is NaN. The vectors may lie in memory that is used again for the next ones."""

    vectors: Float32
    failed: dict[int, str] = field(default_factory=dict)


def run_around_failures(
    engine: Engine, batches: Iterable[TokenBatch], known_good: TokenBatch, stop: Stop = NEVER
) -> Iterator[Computed]:
    """`Engine.run`, but an EngineError comes out only when the engine fails on `known_good` too, which must work.

    Raises:
        EngineError: the engine is broken, whatever the text.
        RunCancelled, DeadlineExceeded: `stop` says so.
    """
    source = Unanswered(batches)
    while True:
        try:
            for vectors in engine.run(source.batches(), stop):
                _count(source.answered(), engine)
                yield Computed(vectors)
            return
        except EngineError:
            source.check()
            # Any of those in flight may be the cause: each is run on its own.
            for batch in source.take():
                yield _bisected(engine, batch, known_good, stop)


def _bisected(engine: Engine, batch: TokenBatch, known_good: TokenBatch, stop: Stop) -> Computed:
    vectors = np.full((len(batch), engine.dimension), np.nan, np.float32)
    failed: dict[int, str] = {}
    waiting = [np.arange(len(batch))]
    while waiting:
        rows = waiting.pop()
        try:
            part = batch.take(rows)
            (vectors[rows],) = engine.run([part], stop)
            _count(part, engine)
        except EngineError as error:
            if len(rows) > 1:
                middle = len(rows) // 2
                waiting += [rows[middle:], rows[:middle]]
                continue
            _see_that_it_works(engine, known_good, error, stop)
            failed[int(rows[0])] = str(error)
    return Computed(vectors, failed)


def _see_that_it_works(engine: Engine, known_good: TokenBatch, error: EngineError, stop: Stop) -> None:
    """Before a text is blamed."""
    try:
        for _ in engine.run([known_good], stop):
            pass
    except EngineError:
        raise error from None


def _count(batch: TokenBatch, engine: Engine) -> None:
    """A batch that was computed."""
    tokens, computed = len(batch.ids), engine.batching.computed_tokens(batch.lengths)
    VECTORS.inc(len(batch))
    TOKENS.inc(tokens)
    BATCH_TOKENS.observe(computed)
    PADDING.observe(1.0 - tokens / computed)

"""The last look at vectors before they leave: which ones are finite and, where normalized, of unit norm.

It is taken here and not on the device, so that what comes between device and caller is looked at as well; it reads the
vectors once. What is not sound is computed again by another engine, in float32.
"""

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fletcher_core.engines.bisection import run_around_failures
from fletcher_core.engines.engine import Engine
from fletcher_core.engines.failover import FailoverEngine
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.errors import EngineError
from fletcher_core.stop import NEVER, Stop
from fletcher_core.tokens import Int64, TokenBatch

_LOG = logging.getLogger(__name__)

# float32 rounding over 4,096 dimensions stays below 1e-5; bfloat16 never reaches the norm, which is taken in float32.
_NORM_TOLERANCE = 1e-3


def sound_vectors(vectors: npt.NDArray[np.float32], normalized: bool) -> npt.NDArray[np.bool_]:
    """float32 [n, dim] -> bool [n]: finite, not zero, and of norm 1 within 1e-3 if `normalized`."""
    # One pass: NaN and Inf anywhere in a row show in its sum of squares, and so does a zero row.
    squares = np.einsum("nd,nd->n", vectors, vectors)
    if normalized:
        return np.abs(np.sqrt(squares) - 1.0) <= _NORM_TOLERANCE
    return np.isfinite(squares) & (squares > 0.0)


class Guard:
    """Computes again what an engine gave no sound vector for.

    Args:
        normalized: whether vectors are of unit length.
        engine: whose vectors are looked at. If many are wrong that another engine gets right, it is told so.
        load_second: makes the other engine, when it is first needed; None when there is none.
        known_good: a batch that every engine must be able to compute.

    Attributes: `second`, the other engine once it is loaded.
    """

    # Of the texts of a window: what is more than these is no matter of single texts.
    _WRONG = 8
    _WRONG_SHARE = 0.1

    def __init__(
        self, normalized: bool, engine: Engine, load_second: Callable[[], Engine] | None, known_good: TokenBatch
    ):
        self.normalized = normalized
        self.second: Engine | None = None
        self._engine = engine
        self._load_second = load_second
        self._known_good = known_good

    @property
    def verdict(self) -> str:
        """Completes the sentence "the vector of text 7 ..." for one that is not sound in the end."""
        tried = "" if self._load_second is None else ", neither in float32 on another engine"
        return f"is not finite or has no length{tried}"

    def retry(self, sequences: TokenBatch, vectors: npt.NDArray[np.float32], rows: Int64, stop: Stop = NEVER) -> Int64:
        """Compute the sequences `rows` (int64 [m], none empty) on the other engine, and put what is sound into
        `vectors`, float32 [n, dim]; the rows of these, int64.

        Raises:
            RunCancelled, DeadlineExceeded: `stop` says so.
        """
        if self._load_second is None:
            return rows[:0]
        rescued = [rows[:0]]
        try:
            second = self._ready_second(self._load_second)
            plan = [rows[part] for part in second.batching.plan(sequences.lengths[rows])]
            batches = (sequences.take(part) for part in plan)
            for part, again in zip(plan, run_around_failures(second, batches, self._known_good, stop), strict=True):
                sound = sound_vectors(again.vectors, self.normalized)
                vectors[part[sound]] = again.vectors[sound]
                rescued.append(part[sound])
        except EngineError as error:
            _LOG.warning("vectors that are not sound cannot be computed again: %s", error)
        found = np.sort(np.concatenate(rescued))
        _LOG.warning(
            "%d of %d vectors of engine %s were not sound; in float32 on another, %d of them are",
            *(len(rows), len(sequences), self._engine.name, len(found)),
        )
        many = len(found) > max(self._WRONG, self._WRONG_SHARE * len(sequences))
        if many and isinstance(self._engine, FailoverEngine):
            self._engine.distrust(f"{len(found)} of {len(sequences)} vectors were wrong; another engine got them right")
        return found

    def _ready_second(self, load: Callable[[], Engine]) -> Engine:
        if self.second is None:
            self.second = load()
        elif isinstance(self.second, IsolatedEngine) and not self.second.is_alive:
            self.second.restart()
        return self.second

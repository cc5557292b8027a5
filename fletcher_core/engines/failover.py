"""Two engines as one: what the first fails to compute the second does, and the first is taken back once it is well.

In: batches planned for either. Out: their vectors, in order, whichever engine computed them. A batch that the first
engine refuses is computed by the second at once; when the first is lost (ended, hanging, wrong) or refuses batch after
batch, it is left alone and started anew in the background, after intervals that grow from failure to failure.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fletcher_core.batching import Batching
from fletcher_core.engines.engine import Engine
from fletcher_core.engines.isolated import EngineLost, IsolatedEngine
from fletcher_core.engines.pool import EnginePool
from fletcher_core.engines.recovery import EngineHealth, ProbeIntervals, Recovery
from fletcher_core.engines.unanswered import BatchRefused, Unanswered
from fletcher_core.errors import EngineError, FletcherError
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.metrics import FAILOVERS
from fletcher_core.tokens import Int64, TokenBatch

__all__ = ["EngineHealth", "FailoverEngine", "ProbeIntervals"]

_LOG = logging.getLogger(__name__)

# Refusals in a row, with nothing computed between them, after which the engine itself is under suspicion.
_REFUSALS = 3

Float32 = npt.NDArray[np.float32]
Cause = Literal["lost", "refused", "distrusted", "recovered"]


class _Distrusted(EngineLost):
    """Whoever looked at the vectors found wrong ones."""


class FailoverEngine:
    """See `Engine`: `name`, `device` and `precision` are the first engine's.

    Args:
        primary: the engine to use as long as it is well.
        load_standby: makes the other one, when it is first needed.
        intervals: of the attempts to take the first one back.
    """

    def __init__(
        self,
        primary: IsolatedEngine | EnginePool,
        load_standby: Callable[[], Engine],
        intervals: ProbeIntervals | None = None,
    ) -> None:
        self.primary = primary
        self._health = EngineHealth()
        self.name = primary.name
        self.device = primary.device
        self.precision = primary.precision
        self.dimension = primary.dimension
        self.ahead = primary.ahead
        self._load_standby = load_standby
        self._standby: Engine | None = None
        self._recovery = Recovery(intervals or ProbeIntervals())
        self._refusals = 0
        self._distrusted = ""
        self._changes: deque[Cause] = deque()  # from one engine to the other, not counted yet
        self._noting = threading.Lock()

    @property
    def health(self) -> EngineHealth:
        """What became of the first engine so far; where that is one on several devices, of each of them."""
        own = self._health
        if not isinstance(self.primary, EnginePool):
            return own
        devices = self.primary.health
        said = own.last_failure if own.standing_in else devices.last_failure or own.last_failure
        return replace(
            devices,
            failed=own.failed + devices.failed,
            taken_back=own.taken_back + devices.taken_back,
            batches=own.batches,
            standing_in=own.standing_in,
            last_failure=said,
        )

    @property
    def batching(self) -> Batching:
        """See `Engine.batching`: of the engine that will compute, once it is loaded. Asked from any thread."""
        return self.in_use.batching

    @property
    def in_use(self) -> Engine:
        """The engine that will compute, once it is loaded."""
        standby = self._standby
        return self.primary if standby is None or not self._health.standing_in else standby

    def device_memory(self) -> dict[str, int]:
        """See `Engine.device_memory`: of the engine in use."""
        return self.in_use.device_memory()

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[Float32]:
        """See `Engine.run`.

        Raises:
            EngineError: the second engine failed, too.
        """
        source = Unanswered(batches)
        while True:
            if self._health.standing_in:
                done = yield from self._standing_in(source, stop)
                if done:
                    return
                continue
            try:
                with closing(self.primary.run(source.batches(), stop)) as results:
                    for vectors in results:
                        source.answered()
                        self._refusals = 0
                        yield vectors
                        self._see_to_distrust()
                return
            except EngineLost as error:
                source.check()
                self._primary_failed(error, "distrusted" if isinstance(error, _Distrusted) else "lost")
                # What it had in flight is not tried on it again: it may be what it fails on.
                yield from self._with_standby(source.take(), stop)
            except EngineError as error:
                source.check()
                yield from self._with_standby(source.take(1 if isinstance(error, BatchRefused) else None), stop)
                # Had the other one refused them too, it would have been the batches' fault.
                self._refused(error)

    def distrust(self, reason: str) -> None:
        """Whoever looked at the vectors says that the first engine computes wrong ones: it is started anew."""
        if not self._health.standing_in:  # else they may be of the other engine, or known to be of a lost one
            self._distrusted = reason

    def close(self) -> None:
        """End the engines' processes, and the attempts to start one."""
        self._recovery.close()
        for engine in (self.primary, self._standby):
            if isinstance(engine, IsolatedEngine | EnginePool):
                engine.close()

    def _refused(self, error: EngineError) -> None:
        self._refusals += 1
        if self._refusals >= _REFUSALS:
            self._primary_failed(error, "refused")
        else:
            self._note(failed=self._health.failed + 1, last_failure=str(error))
            _LOG.warning("engine %s failed, another computed these batches: %s", self.name, error)

    def _see_to_distrust(self) -> None:
        reason, self._distrusted = self._distrusted, ""
        if reason:
            raise _Distrusted(reason)

    def _standing_in(self, source: Unanswered, stop: Stop) -> Generator[Float32, None, bool]:
        """Compute with the second engine until the first is back (False) or nothing is left (True)."""
        over = True

        def until_back() -> Iterator[TokenBatch]:
            nonlocal over
            for batch in source.batches():
                yield batch
                if not self._health.standing_in:
                    over = False
                    return

        for vectors in self._with_standby(until_back(), stop):
            source.answered()
            yield vectors
        return over

    def _with_standby(self, batches: Iterable[TokenBatch], stop: Stop) -> Iterator[Float32]:
        """Vectors of batches that were planned for the first engine, cut to the second one's measure."""
        standby = self._ready_standby()
        cut: deque[tuple[TokenBatch, list[Int64]]] = deque()

        def parts() -> Iterator[TokenBatch]:
            for batch in batches:
                plan = standby.batching.plan(batch.lengths)
                cut.append((batch, plan))
                for rows in plan:
                    yield batch.take(rows)

        finished: list[Float32] = []
        for vectors in standby.run(parts(), stop):
            batch, plan = cut[0]
            finished.append(vectors.copy())
            if len(finished) == len(plan):
                together = np.empty((len(batch), self.dimension), np.float32)
                together[np.concatenate(plan)] = np.concatenate(finished)
                cut.popleft()
                finished = []
                self._note(batches=self._health.batches + 1)
                yield together

    def _ready_standby(self) -> Engine:
        """The second engine, loaded and running."""
        if self._standby is None:
            _LOG.info("loading the engine that stands in for %s", self.name)
            self._standby = self._load_standby()
            (vectors,) = self._standby.run([self.primary.check_batch])
            self.primary.reference = vectors.copy()
        elif isinstance(self._standby, IsolatedEngine) and not self._standby.is_alive:
            self._standby.restart()
        self._count_changes()
        return self._standby

    def _count_changes(self, *causes: Cause) -> None:
        """These and those before them, once the second engine is there and known by name."""
        with self._noting:
            self._changes += causes
            while self._changes and self._standby is not None:
                cause, names = self._changes.popleft(), (self.name, self._standby.name)
                FAILOVERS.labels(*(reversed(names) if cause == "recovered" else names), cause).inc()

    def _primary_failed(self, error: EngineError, cause: Cause) -> None:
        self._refusals, self._distrusted = 0, ""
        self.primary.close()
        self._count_changes(cause)
        self._note(failed=self._health.failed + 1, standing_in=True, last_failure=str(error))
        wait = self._recovery.failed()
        _LOG.warning("engine %s is replaced by another for now, and tried again in %.0f s: %s", self.name, wait, error)
        self._recovery.begin(self._try_again, wait)

    def _try_again(self) -> float | None:
        """Start the first engine anew; seconds until the next attempt, None when it computes what it should."""
        try:
            self.primary.restart()
        except FletcherError as error:
            wait = self._recovery.next_wait()
            self._note(last_failure=str(error))
            _LOG.warning("engine %s is not well yet, it is tried again in %.0f s: %s", self.name, wait, error)
            return wait
        if self._recovery.is_closed:
            self.primary.close()
            return None
        self._recovery.well()
        self._distrusted = ""
        self._count_changes("recovered")
        self._note(taken_back=self._health.taken_back + 1, standing_in=False)
        _LOG.info("engine %s is well again", self.name)
        return None

    def _note(self, **changes: Any) -> None:
        with self._noting:
            self._health = replace(self._health, **changes)

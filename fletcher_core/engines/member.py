"""One device of a pool: its engine, how fast that was of late, and how it leaves the pool and comes back.

In: word that its engine failed. Out: the engine, started anew in the background once the device is well again.
"""

import logging
import threading
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from fletcher_core.engines.dispatch import Rate
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.engines.isolated.engine import Supervision
from fletcher_core.engines.recovery import ProbeIntervals, Recovery
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.errors import EngineError, FletcherError
from fletcher_core.telemetry.metrics import POOL_BUSY_SECONDS, POOL_CHANGES, POOL_TOKENS

_LOG = logging.getLogger(__name__)

# Of what a worker says of its memory, what it needs now: a GPU's, else its process's.
_MEMORY_KINDS = ("active", "resident", "peak")

Cause = Literal["lost", "refused", "recovered"]


class Member:
    """One device. It is in the pool while `is_in`; only then is its engine anybody's but the attempt's to start it.

    Attributes: `label`, its name; `rate`, of late; `failed` and `taken_back`, how often; `last_failure`; `in_flight`,
    batches; `refusals` in a row, of batches that others computed.
    """

    def __init__(
        self, label: str, spec: EngineSpec, supervision: Supervision | None, intervals: ProbeIntervals
    ) -> None:
        self.label = label
        self.is_in = False
        self.in_flight = self.refusals = 0
        self.rate = Rate()
        self.failed = self.taken_back = 0
        self.last_failure = ""
        self._spec = spec
        self._supervision = supervision
        self._reference: npt.NDArray[np.float32] | None = None
        self._intervals = intervals
        self._recovery = Recovery(intervals)
        self._engine: IsolatedEngine | None = None
        self._starting = threading.Lock()

    @property
    def engine(self) -> IsolatedEngine:
        """Of a member that was in the pool once."""
        assert self._engine is not None
        return self._engine

    @property
    def was_in(self) -> bool:
        """Whether it has an engine, well or not."""
        return self._engine is not None

    @property
    def pid(self) -> int | None:
        """Of the worker's process."""
        return None if self._engine is None else self._engine.pid

    @property
    def memory(self) -> dict[str, int]:
        """See `Engine.device_memory`."""
        return {} if self._engine is None else self._engine.device_memory()

    @property
    def memory_in_use(self) -> int:
        """Bytes."""
        memory = self.memory
        return next((memory[kind] for kind in _MEMORY_KINDS if kind in memory), 0)

    def start(self) -> None:
        """Start its engine, or start it anew: it is in the pool then. When it fails, it is tried again later.

        Raises:
            EngineLost, EngineError: the device does not compute what it should.
            ModelError, ConfigError: no device will.
        """
        with self._starting:
            self._recovery = Recovery(self._intervals)
            try:
                self._load()
            except EngineError as error:
                self._note_failure(error, "lost")
                raise
            self.is_in = True

    def be_like(self, engine: IsolatedEngine) -> None:
        """Be the same kind of engine, and no other that "auto" may lead to, and find the same vectors right."""
        self._spec = replace(self._spec, choice=engine.spec.choice)
        self.trust(engine.reference)

    def trust(self, reference: npt.NDArray[np.float32] | None) -> None:
        """Take these for the right vectors of the known batch."""
        self._reference = reference
        if self._engine is not None:
            self._engine.reference = reference

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens came back, for which the device had so long."""
        self.rate.observe(tokens, seconds)
        POOL_TOKENS.labels(self.label).inc(tokens)
        POOL_BUSY_SECONDS.labels(self.label).inc(seconds)

    def leave(self, error: EngineError, cause: Cause) -> None:
        """Leave the pool, and be tried again later."""
        self.is_in = False
        self.in_flight = 0
        self.engine.close()
        self._note_failure(error, cause)

    def close(self) -> None:
        """End its process, and the attempts to start one."""
        self._recovery.close()
        self.is_in = False
        self.in_flight = 0
        if self._engine is not None:
            self._engine.close()

    def _load(self) -> None:
        if self._engine is None:
            self._engine = IsolatedEngine(self._spec, self._supervision, self._reference)
        else:
            self._engine.restart()
        self.refusals = 0
        self.rate = Rate()  # its device may be another one by now, or have other work
        self._recovery.well()

    def _note_failure(self, error: EngineError, cause: Cause) -> None:
        self.failed += 1
        self.last_failure = str(error)
        POOL_CHANGES.labels(self.label, cause).inc()
        wait = self._recovery.failed()
        _LOG.warning("device %s is out of the pool, and tried again in %.0f s: %s", self.label, wait, error)
        self._recovery.begin(self._try_again, wait)

    def _try_again(self) -> float | None:
        """See `Attempt`."""
        recovery = self._recovery
        with self._starting:
            if recovery.is_closed or self.is_in:
                return None
            try:
                self._load()
            except FletcherError as error:
                self.last_failure = str(error)
                wait = recovery.next_wait()
                _LOG.warning("device %s is not well yet, it is tried again in %.0f s: %s", self.label, wait, error)
                return wait
            if recovery.is_closed:
                self.engine.close()
                return None
            self.taken_back += 1
            self.is_in = True
        POOL_CHANGES.labels(self.label, "recovered").inc()
        _LOG.info("device %s is well again, and back in the pool", self.label)
        return None

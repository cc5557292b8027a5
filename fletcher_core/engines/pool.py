"""One engine made of several alike, one on each device: what one device cannot do the others do.

In: batches. Out: their vectors, in order, whichever device computed them. A device whose engine is lost (ended,
hanging, wrong) or refuses batch after batch leaves the pool, is started anew in the background, and comes back.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import numpy.typing as npt

from fletcher_core.batching import Batching
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.engines.isolated.engine import Supervision
from fletcher_core.engines.member import Member
from fletcher_core.engines.pool_run import PoolRun
from fletcher_core.engines.recovery import EngineHealth, ProbeIntervals
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.errors import EngineError
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.metrics import POOL_IN_FLIGHT, POOL_MEMORY
from fletcher_core.tokens import TokenBatch

Float32 = npt.NDArray[np.float32]


class EnginePool:
    """See `Engine`: `name`, `precision` and `dimension` are those of each of them. One caller at a time.

    Args:
        specs: of the engines, one for each device, which differ in their `device`.
        supervision: of each of them.
        intervals: of the attempts to take one back.

    Attributes: `members`, the devices; `check_batch`, as of `IsolatedEngine`.

    Raises:
        ModelError, ConfigError, EngineError: no device could be started; what was said of the first.
    """

    def __init__(
        self,
        specs: Sequence[EngineSpec],
        supervision: Supervision | None = None,
        intervals: ProbeIntervals | None = None,
    ) -> None:
        every = intervals or ProbeIntervals()
        by_number = all(spec.device.isdigit() for spec in specs)  # else they are long names, or no GPUs
        labels = [spec.device if by_number else str(number) for number, spec in enumerate(specs)]
        self.members = [Member(label, spec, supervision, every) for label, spec in zip(labels, specs, strict=True)]
        self.restart()
        engine = self._engine
        self.name = engine.name
        self.device = f"{len(specs)} x {engine.device}"
        self.precision = engine.precision
        self.dimension = engine.dimension
        self.ahead = len(specs) * (engine.ahead + 1) - 1
        self.check_batch = engine.check_batch
        _POOLS.add(self)

    def restart(self) -> None:
        """Start all devices anew; those that fail are tried again later.

        Raises:
            ModelError, ConfigError, EngineError: none of them computes what it should; what was said of the first.
        """
        self.close()
        failures: list[EngineError] = []
        waiting = iter(self.members)
        # One alone before the others, which find compiled what it compiles.
        for member in waiting:
            try:
                member.start()
                break
            except EngineError as error:
                failures.append(error)
        else:
            self.close()
            raise failures[0]
        engine = self._engine
        engine.insist()
        for member in self.members:
            if not member.was_in:
                member.be_like(engine)
        with ThreadPoolExecutor(len(self.members)) as together:
            started = [together.submit(member.start) for member in waiting]
        for start in started:
            if (failure := start.exception()) is not None and not isinstance(failure, EngineError):
                self.close()
                raise failure

    @property
    def _engine(self) -> IsolatedEngine:
        """Of those in the pool the one that wants the smallest batches, which all can take."""
        known = [member for member in self.members if member.was_in]
        in_use = [member for member in known if member.is_in]
        return min((member.engine for member in in_use or known), key=lambda engine: engine.batching.token_budget)

    @property
    def batching(self) -> Batching:
        """See `Engine.batching`."""
        return self._engine.batching

    @property
    def reference(self) -> Float32 | None:
        """As of `IsolatedEngine`; it is set for all devices."""
        return self._engine.reference

    @reference.setter
    def reference(self, vectors: Float32) -> None:
        for member in self.members:
            member.trust(vectors)

    @property
    def health(self) -> EngineHealth:
        """What became of the devices so far."""
        out = [member for member in self.members if not member.is_in]
        of_late = out or [member for member in self.members if member.failed]
        words = [f"device {member.label}: {member.last_failure}" for member in of_late]
        if out:
            verb = "is" if len(out) == 1 else "are"
            words.insert(0, f"{len(out)} of {len(self.members)} devices {verb} out")
        return EngineHealth(
            failed=sum(member.failed for member in self.members),
            taken_back=sum(member.taken_back for member in self.members),
            last_failure="; ".join(words),
            devices=len(self.members),
            devices_out=tuple(member.label for member in out),
        )

    @property
    def pids(self) -> list[int]:
        """Of the processes that there are."""
        return [member.pid for member in self.members if member.pid is not None]

    def insist(self) -> None:
        """As `IsolatedEngine.insist`; it is so from the start."""

    def device_memory(self) -> dict[str, int]:
        """See `Engine.device_memory`: of all devices together."""
        total: Counter[str] = Counter()
        for member in self.members:
            total.update(member.memory)
        return dict(total)

    def close(self) -> None:
        """End all processes, and the attempts to start one; `restart` makes others."""
        for member in self.members:
            member.close()

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Generator[Float32]:
        """See `Engine.run`.

        Raises:
            EngineLost: no device is left.
            BatchRefused: several devices failed on the oldest batch.
        """
        with closing(PoolRun(self.members, batches, stop)) as running:
            yield from running.results()


_POOLS: "weakref.WeakSet[EnginePool]" = weakref.WeakSet()


def _by_device(figure: Callable[[Member], float]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for pool in list(_POOLS):
        for member in pool.members:
            total[member.label] += figure(member)  # type: ignore[assignment]
    return dict(total)


POOL_IN_FLIGHT.ask(lambda: _by_device(lambda member: member.in_flight))
POOL_MEMORY.ask(lambda: _by_device(lambda member: member.memory_in_use))

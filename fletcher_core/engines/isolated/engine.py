"""An engine whose work is done by a process of its own, watched: a hang, a crash or wrong vectors raise `EngineLost`.

Batches are put into shared memory and vectors are read from there; only a few words a batch go through a socket.
"""

import os
import time
import weakref
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fletcher_core.batching import Batching
from fletcher_core.engines.agreement import least_cosine
from fletcher_core.engines.isolated.arena import Slot
from fletcher_core.engines.isolated.messages import Message
from fletcher_core.engines.isolated.process import EngineLost, WorkerProcess
from fletcher_core.engines.isolated.stream import Stream
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.models import ModelPackage
from fletcher_core.stop import NEVER, Stop
from fletcher_core.tokens import TokenBatch, cumulative

__all__ = ["EngineLost", "IsolatedEngine", "Supervision"]

_WATCH_SECONDS = 0.02  # between two looks at whether to stop
_CHECK_LENGTHS = (64, 3, 17)  # tokens
_RATE_SHARE = 0.1  # of a new measurement in the running mean

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Supervision:
    """When a worker counts as lost; times in seconds.

    Args:
        start: until the engine is loaded; compiling kernels is part of it.
        hang_factor: times the time that a batch should take at the rate measured so far.
        hang_floor: the least that a batch is given, as kernels may be compiled meanwhile; six times that before a rate
            is known.
        check_every: a known batch is computed so often between the others, and at each start.
        least_cosine: of its vectors to what they were at first, or to another engine's where one has computed them.
    """

    start: float = 300.0
    hang_factor: float = 20.0
    hang_floor: float = 10.0
    check_every: float = 60.0
    least_cosine: float = 0.999


class IsolatedEngine:
    """See `Engine`. One caller at a time, as for any engine.

    Args:
        spec: what its process loads.
        supervision: when that counts as lost.
        reference: as the attribute; None takes what it computes first.

    Attributes: `reference`, float32 [3, dimension]: the right vectors of `check_batch`; may be set by who knows better.

    Raises:
        EngineLost: its process ended or hung before the engine was ready.
        ModelError, ConfigError, EngineError: as the engine's own loading.
    """

    def __init__(
        self, spec: EngineSpec, supervision: Supervision | None = None, reference: Float32 | None = None
    ) -> None:
        self.spec = spec
        self.supervision = supervision or Supervision()
        self.dimension = spec.dimension
        self.check_batch = _check_batch(ModelPackage.read(Path(spec.folder), spec.name))
        self.reference = reference
        self.slots: list[Slot] = []  # that no batch is in
        self._process: WorkerProcess | None = None
        self.restart()
        _LOADED.add(self)

    def restart(self) -> None:
        """Start the worker anew and see that it computes what it should.

        Raises:
            EngineLost, ModelError, ConfigError, EngineError: as when it was made.
        """
        self.close()
        process = WorkerProcess(self.spec, self.supervision.start)
        ready = process.ready
        self.name: str = ready["name"]
        self.device: str = ready["device"]
        self.precision: str = ready["precision"]
        self.ahead: int = ready["ahead"]
        self._batching = _batching(ready)
        self._memory: dict[str, int] = ready["memory"]
        self.slots = [Slot(0, 0) for _ in range(self.ahead + 2)]  # one more than are in flight, for a check
        self._stream = 0  # number of the last one, so that no answer is ever taken for another's
        self._rate = 0.0  # computed tokens a second
        self._last_done = 0.0
        self._checked_at = time.monotonic()
        self._process = process
        (vectors,) = self.run([self.check_batch])
        self.compare(vectors)

    def insist(self) -> None:
        """Be this engine, and no other that `choice="auto"` may lead to, whenever it is started again."""
        self.spec = replace(self.spec, choice=self.name)  # type: ignore[arg-type]

    @property
    def is_alive(self) -> bool:
        """Whether there is a worker that was not seen to fail."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Of the worker's process."""
        return None if self._process is None else self._process.pid

    @property
    def batching(self) -> Batching:
        """See `Engine.batching`."""
        return self._batching

    def device_memory(self) -> dict[str, int]:
        """See `Engine.device_memory`; of the worker, nothing when there is none."""
        return dict(self._memory) if self.is_alive else {}

    def close(self) -> None:
        """End the worker; `restart` makes another."""
        process, self._process = self._process, None  # one step: another thread may be closing it, too
        if process is not None:
            process.end()

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Generator[Float32]:
        """See `Engine.run`. The vectors are read from memory that is used again after the next ones are asked for.

        Raises:
            EngineLost: the worker has ended, hangs or computes wrong vectors; it has been ended.
        """
        stream = self.stream()
        over = False
        try:
            for batch in batches:
                stop.check()
                while stream.in_flight > self.ahead:
                    if (answer := stream.receive(_WATCH_SECONDS)) is not None:
                        yield answer.vectors
                    stop.check()
                stream.send(batch)
            stream.end()
            while stream.in_flight:
                if (answer := stream.receive(_WATCH_SECONDS)) is not None:
                    yield answer.vectors
                elif stream.in_flight:
                    stop.check()
            stream.hear_over(self.supervision.hang_floor)
            over = True
        except EngineLost:
            self.close()
            over = True
            raise
        finally:
            if not over:
                stream.give_up()

    def stream(self) -> Stream:
        """A new stream of batches, for who waits for several engines at a time; the one before it must be over.

        Raises:
            EngineLost: there is no worker.
        """
        if self._process is None:
            raise EngineLost(f"the process of engine {self.name!r} has ended")
        self._stream += 1
        return Stream(self, self._process, self._stream)

    # From here on: for the streams.

    def check_is_due(self) -> bool:
        """Whether the known batch should be computed now; then it is not for some time."""
        now = time.monotonic()
        due = now - self._checked_at > self.supervision.check_every
        if due:
            self._checked_at = now
        return due

    def learn(self, computed: int, sent_at: float, message: Message) -> float:
        """What a worker's answer says of it; the seconds that it had for that batch alone."""
        began, self._last_done = max(sent_at, self._last_done), message["at"]
        seconds = max(self._last_done - began, 1e-6)
        rate = computed / seconds
        self._rate = rate if not self._rate else self._rate + _RATE_SHARE * (rate - self._rate)
        self._batching = _batching(message)
        self._memory = message.get("memory", self._memory)
        return seconds

    def limit(self, computed: int) -> float:
        """Seconds that a batch of so many tokens may take."""
        floor = self.supervision.hang_floor
        if not self._rate:
            return 6 * floor
        return max(floor, self.supervision.hang_factor * computed / self._rate)

    def compare(self, vectors: Float32) -> None:
        """Look at what the worker made of the known batch.

        Raises:
            EngineLost: it is wrong.
        """
        if self.reference is None:
            self.reference = vectors.copy()
        cosine = least_cosine(vectors, self.reference)
        if not cosine >= self.supervision.least_cosine:  # a NaN is not
            self.close()
            raise EngineLost(
                f"engine {self.name!r} on {self.device} computes wrong vectors: a known text's have a cosine of "
                f"{cosine:.4f} to what they were"
            )

    def _forget(self) -> None:
        """In a forked process: the worker is our parent's."""
        if self._process is not None:
            self._process.forget()
            self._process = None


_LOADED: "weakref.WeakSet[IsolatedEngine]" = weakref.WeakSet()


def _after_fork() -> None:
    for engine in _LOADED:
        engine._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _batching(message: Message) -> Batching:
    values = message["batching"]
    return Batching(values["layout"], values["token_budget"], values["multiple"], tuple(values["buckets"]))


def _check_batch(package: ModelPackage) -> TokenBatch:
    """The same few sequences for a model, always."""
    lengths = np.minimum(np.array(_CHECK_LENGTHS), package.max_length)
    ids = np.random.default_rng(0).integers(0, package.architecture.vocab_size, int(lengths.sum()))
    return TokenBatch(ids.astype(np.int32), cumulative(lengths))

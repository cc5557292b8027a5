"""An engine whose work is done by a process of its own, watched: a hang, a crash or wrong vectors raise `EngineLost`.

Batches are put into shared memory and vectors are read from there; only a few words a batch go through a socket.
"""

import os
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fletcher_core.batching import Batching
from fletcher_core.engines.agreement import least_cosine
from fletcher_core.engines.isolated.arena import Place, Slot
from fletcher_core.engines.isolated.messages import Message
from fletcher_core.engines.isolated.process import EngineLost, WorkerProcess
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.errors import EngineError
from fletcher_core.models import ModelPackage
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.layers import observe_layers
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


@dataclass
class _Sent:
    """A batch with the worker. `is_check`: nobody but us waits for it."""

    place: Place
    slot: Slot
    computed: int
    at: float
    is_check: bool


class IsolatedEngine:
    """See `Engine`. One caller at a time, as for any engine.

    Attributes: `reference`, float32 [3, dimension]: the right vectors of `check_batch`; may be set by who knows better.

    Raises:
        EngineLost: its process ended or hung before the engine was ready.
        ModelError, ConfigError, EngineError: as the engine's own loading.
    """

    def __init__(self, spec: EngineSpec, supervision: Supervision | None = None) -> None:
        self.spec = spec
        self.supervision = supervision or Supervision()
        self.dimension = spec.dimension
        self.check_batch = _check_batch(ModelPackage.read(Path(spec.folder), spec.name))
        self.reference: Float32 | None = None
        self._process: WorkerProcess | None = None
        self._slots: list[Slot] = []
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
        self._slots = [Slot(0, 0) for _ in range(self.ahead + 2)]  # one more than `run` fills, for a check
        self._stream = 0  # number of the last one, so that no answer is ever taken for another's
        self._rate = 0.0  # computed tokens a second
        self._last_done = 0.0
        self._checked_at = time.monotonic()
        self._process = process
        (vectors,) = self.run([self.check_batch])
        self._compare(vectors)

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
        if self._process is not None:
            self._process.end()
            self._process = None

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Generator[Float32]:
        """See `Engine.run`. The vectors are read from memory that is used again after the next ones are asked for.

        Raises:
            EngineLost: the worker has ended, hangs or computes wrong vectors; it has been ended.
        """
        process = self._process
        if process is None:
            raise EngineLost(f"the process of engine {self.name!r} has ended")
        flying: deque[_Sent] = deque()
        over = begun = False
        self._stream += 1
        try:
            for batch, is_check in self._with_checks(batches):
                stop.check()
                if len(flying) > self.ahead:
                    yield from self._collect(process, flying, stop)
                messages = [self._place(process, flying, batch, is_check)]
                if not begun:
                    begun = True  # before it is: an interrupt may come at any instruction
                    messages.insert(0, {"kind": "begin", "stream": self._stream})
                process.send(*messages)
            if begun:
                process.send({"kind": "end"})
                while flying:
                    yield from self._collect(process, flying, stop)
                self._hear_over(process, self.supervision.hang_floor)
            over = True
        except EngineLost:
            self.close()
            over = True
            raise
        finally:
            if not over and begun:
                self._interrupt(process, flying)

    def _with_checks(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, bool]]:
        """The batches, and from time to time the known one."""
        for batch in batches:
            if time.monotonic() - self._checked_at > self.supervision.check_every:
                self._checked_at = time.monotonic()
                yield self.check_batch, True
            yield batch, False

    def _place(self, process: WorkerProcess, flying: deque[_Sent], batch: TokenBatch, is_check: bool) -> Message:
        """Put a batch where the worker finds it; the message that says where."""
        slot = self._slots.pop()
        size = Place(0, len(batch.ids), len(batch)).size(self.dimension)
        slot = process.arena.reserve(slot, size)
        place = Place(slot.offset, len(batch.ids), len(batch))
        target = place.batch(process.arena.memory(slot.offset + slot.capacity))
        target.ids[:] = batch.ids
        target.cu_seqlens[:] = batch.cu_seqlens
        computed = self._batching.computed_tokens(batch.lengths)
        flying.append(_Sent(place, slot, computed, time.monotonic(), is_check))
        return {"kind": "batch", "place": [place.offset, place.tokens, place.sequences]}

    def _collect(self, process: WorkerProcess, flying: deque[_Sent], stop: Stop) -> Iterator[Float32]:
        """The vectors of the oldest batch; nothing where it was a check."""
        oldest = flying[0]
        # From when somebody waits: this process may have been at something else, or asleep, and the worker with it.
        asked = time.monotonic()
        message = self._wait(process, asked + self._limit(oldest.computed), stop)
        if message is None:
            raise EngineLost(
                f"engine {self.name!r} on {self.device} has been silent for {time.monotonic() - asked:.1f} s over a "
                f"batch of {oldest.place.sequences} texts: it hangs"
            )
        self._check_stream(message)
        if message["kind"] == "failed":
            raise EngineError(message["message"])
        if message["kind"] != "done" or message["offset"] != oldest.place.offset:
            raise EngineLost(f"engine {self.name!r} answers out of step: {message['kind']}")
        began, self._last_done = max(oldest.at, self._last_done), time.monotonic()
        self._learn(oldest.computed / max(self._last_done - began, 1e-6))
        self._batching = _batching(message)
        self._memory = message.get("memory", self._memory)
        for seconds in message.get("layers", ()):
            observe_layers(seconds)
        flying.popleft()
        vectors = oldest.place.vectors(process.arena.memory(oldest.slot.offset + oldest.slot.capacity), self.dimension)
        try:
            if oldest.is_check:
                self._compare(vectors)
            else:
                yield vectors
        finally:
            self._slots.append(oldest.slot)

    def _wait(self, process: WorkerProcess, deadline: float, stop: Stop) -> Message | None:
        while True:
            message = process.receive(deadline, _WATCH_SECONDS)
            if message is not None or time.monotonic() > deadline:
                return message
            stop.check()

    def _check_stream(self, message: Message) -> None:
        if message.get("stream") != self._stream:
            raise EngineLost(f"engine {self.name!r} answers out of step: to stream {message.get('stream')}")

    def _hear_over(self, process: WorkerProcess, patience: float) -> None:
        """The last word of a stream, after all its vectors."""
        deadline = time.monotonic() + patience
        while (message := process.receive(deadline)) is not None:
            self._check_stream(message)
            if message["kind"] == "over":
                return
        raise EngineLost(f"engine {self.name!r} on {self.device} does not end a stream: it hangs")

    def _interrupt(self, process: WorkerProcess, flying: deque[_Sent]) -> None:
        """Have the worker drop what it has, so that the next stream finds it idle; end it if it does not."""
        self._slots += [sent.slot for sent in flying]
        try:
            process.send({"kind": "stop"})
            self._hear_over(process, sum((self._limit(sent.computed) for sent in flying), self.supervision.hang_floor))
        except EngineLost:
            self.close()
        except BaseException:  # interrupted again: what the worker still says would be taken for the next stream's
            self.close()
            raise

    def _limit(self, computed: int) -> float:
        """Seconds that a batch may take."""
        floor = self.supervision.hang_floor
        if not self._rate:
            return 6 * floor
        return max(floor, self.supervision.hang_factor * computed / self._rate)

    def _learn(self, rate: float) -> None:
        self._rate = rate if not self._rate else self._rate + _RATE_SHARE * (rate - self._rate)

    def _compare(self, vectors: Float32) -> None:
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

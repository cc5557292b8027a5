"""One stream of batches through a worker: sent one by one, answered in their order, given up when that must be.

In: batches, put where the worker finds them. Out: their vectors, in memory that is used again.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fletcher_core.engines.isolated.arena import Place, Slot
from fletcher_core.engines.isolated.messages import Message
from fletcher_core.engines.isolated.process import EngineLost, WorkerProcess
from fletcher_core.errors import EngineError
from fletcher_core.telemetry.layers import observe_layers
from fletcher_core.tokens import TokenBatch

if TYPE_CHECKING:
    from fletcher_core.engines.isolated.engine import IsolatedEngine

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """The `vectors` of a batch, float32 [n, dimension], valid until the stream is asked or given something again; the
    `seconds` that the worker had for it alone."""

    vectors: Float32
    seconds: float


@dataclass
class _Sent:
    """A batch with the worker. `is_check`: nobody but us waits for it."""

    place: Place
    slot: Slot
    computed: int
    at: float
    is_check: bool


class Stream:
    """See above. One at a time for an engine, which makes it; `hear_over` or `give_up` ends it, whatever happens."""

    def __init__(self, engine: "IsolatedEngine", process: WorkerProcess, number: int) -> None:
        self._engine = engine
        self._process = process
        self._number = number
        self._flying: deque[_Sent] = deque()
        self._lent: Slot | None = None
        self._waited = 0.0  # seconds, in vain, for the oldest
        self._begun = self._ended = self._interrupted = self._over = False

    @property
    def in_flight(self) -> int:
        """Batches that the worker has, checks among them."""
        return len(self._flying)

    @property
    def ended(self) -> bool:
        """Whether no batch can be sent any more."""
        return self._ended

    def fileno(self) -> int:
        """What can be waited for to be readable."""
        return self._process.fileno()

    def send(self, batch: TokenBatch) -> None:
        """Hand a batch over; from time to time a known one before it.

        Raises:
            EngineLost: the worker has ended.
        """
        self._give_back()
        messages = [self._place(self._engine.check_batch, True)] if self._engine.check_is_due() else []
        messages.append(self._place(batch, False))
        if not self._begun:
            self._begun = True  # before it is: an interrupt may come at any instruction
            messages.insert(0, {"kind": "begin", "stream": self._number})
        self._process.send(*messages)

    def end(self) -> None:
        """There are no more batches: the worker need not wait for others before it answers.

        Raises:
            EngineLost: the worker has ended.
        """
        if self._begun and not self._ended:
            self._process.send({"kind": "end"})
        self._ended = True

    def receive(self, timeout: float) -> Answer | None:
        """The answer to the oldest batch; None if none comes within `timeout` seconds, or it was a check.

        Raises:
            EngineLost: the worker has ended, hangs or computes wrong vectors.
            EngineError: it failed on one of the batches in flight.
        """
        self._give_back()
        asked = time.monotonic()
        message = self._process.receive(asked + timeout)
        if message is None:
            self.waited(time.monotonic() - asked)
            return None
        self._waited = 0.0
        return self._answer(message)

    def waited(self, seconds: float) -> None:
        """Somebody waited so long in vain. Only that counts: this process may be at something else, or asleep.

        Raises:
            EngineLost: it has been too long.
        """
        if not self._flying:
            return
        self._waited += seconds
        oldest, engine = self._flying[0], self._engine
        if self._waited > engine.limit(oldest.computed):
            raise EngineLost(
                f"engine {engine.name!r} on {engine.device} has been silent for {self._waited:.1f} s over a "
                f"batch of {oldest.place.sequences} texts: it hangs"
            )

    def hear_over(self, patience: float) -> None:
        """The last word of a stream that was ended, after all its vectors.

        Raises:
            EngineLost: the worker does not say it within `patience` seconds.
        """
        self._give_back()
        deadline = time.monotonic() + patience
        while self._begun and not self._over:
            message = self._process.receive(deadline)
            if message is None:
                engine = self._engine
                raise EngineLost(f"engine {engine.name!r} on {engine.device} does not end a stream: it hangs")
            self._check_number(message)
            self._over = message["kind"] == "over"
        self._over = True

    def interrupt(self) -> None:
        """Tell the worker to drop what it has; `give_up` hears that it did."""
        if self._begun and not self._interrupted and not self._over:
            self._interrupted = True
            self._process.send({"kind": "stop"})

    def give_up(self) -> None:
        """Have the worker drop what it has, so that the next stream finds it idle; end it if it does not."""
        if self._over:
            return
        patience = self._engine.limit(sum(sent.computed for sent in self._flying))
        self._give_back()
        self._engine.slots += [sent.slot for sent in self._flying]
        self._flying.clear()
        try:
            self.interrupt()
            self.hear_over(patience)
        except EngineLost:
            self._engine.close()
        except BaseException:  # interrupted again: what the worker still says would be taken for the next stream's
            self._engine.close()
            raise
        finally:
            self._over = True

    def _give_back(self) -> None:
        if self._lent is not None:
            self._engine.slots.append(self._lent)
            self._lent = None

    def _place(self, batch: TokenBatch, is_check: bool) -> Message:
        """Put a batch where the worker finds it; the message that says where."""
        engine, arena = self._engine, self._process.arena
        slot = engine.slots.pop()
        slot = arena.reserve(slot, Place(0, len(batch.ids), len(batch)).size(engine.dimension))
        place = Place(slot.offset, len(batch.ids), len(batch))
        target = place.batch(arena.memory(slot.offset + slot.capacity))
        target.ids[:] = batch.ids
        target.cu_seqlens[:] = batch.cu_seqlens
        computed = engine.batching.computed_tokens(batch.lengths)
        self._flying.append(_Sent(place, slot, computed, time.monotonic(), is_check))
        return {"kind": "batch", "place": [place.offset, place.tokens, place.sequences]}

    def _answer(self, message: Message) -> Answer | None:
        engine = self._engine
        self._check_number(message)
        if message["kind"] == "failed":
            raise EngineError(message["message"])
        oldest = self._flying[0] if self._flying else None
        if oldest is None or message["kind"] != "done" or message["offset"] != oldest.place.offset:
            raise EngineLost(f"engine {engine.name!r} answers out of step: {message['kind']}")
        seconds = engine.learn(oldest.computed, oldest.at, message)
        for layers in message.get("layers", ()):
            observe_layers(layers)
        self._flying.popleft()
        self._lent = oldest.slot
        memory = self._process.arena.memory(oldest.slot.offset + oldest.slot.capacity)
        vectors = oldest.place.vectors(memory, engine.dimension)
        if oldest.is_check:
            engine.compare(vectors)
            return None
        return Answer(vectors, seconds)

    def _check_number(self, message: Message) -> None:
        if message.get("stream") != self._number:
            raise EngineLost(f"engine {self._engine.name!r} answers out of step: to stream {message.get('stream')}")

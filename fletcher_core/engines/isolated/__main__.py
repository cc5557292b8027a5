"""The worker: loads an engine, then computes what its parent puts into the shared memory, until the parent is gone."""

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from fletcher_core.engines.engine import Engine
from fletcher_core.engines.isolated.arena import Arena, Place
from fletcher_core.engines.isolated.messages import Closed, Message, Messages
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.errors import FletcherError, RunCancelled
from fletcher_core.stop import Stop
from fletcher_core.telemetry.layers import LayerSeconds, carry_layers
from fletcher_core.tokens import TokenBatch

# Seconds from one word on the memory to the next: asking the system for it takes some 20 us.
_MEMORY_EVERY = 0.5


class Worker:
    """One engine for one parent."""

    def __init__(self, messages: Messages, arena: Arena) -> None:
        self._messages = messages
        self._arena = arena
        self._sending = threading.Lock()
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._layers: deque[LayerSeconds] = deque()  # measured, and not told yet
        self._memory_told = -_MEMORY_EVERY

    def work(self) -> None:
        """Until the process ends. The engine stays on this thread, messages are read on another: a word to stop is
        heard while the engine computes."""
        threading.Thread(target=self._read, name="fletcher-parent", daemon=True).start()
        carry_layers(self._layers.append)
        message = self._inbox.get()
        try:
            engine = EngineSpec(**message["spec"]).load()
        except FletcherError as error:
            self.send({"kind": "refused", "error": type(error).__name__, "message": str(error)})
            return
        self.send(
            {
                "kind": "ready",
                "name": engine.name,
                "device": engine.device,
                "precision": engine.precision,
                "ahead": engine.ahead,
                "batching": vars(engine.batching),
                "memory": engine.device_memory(),
            }
        )
        while True:
            if (message := self._inbox.get())["kind"] == "begin":
                self._stream(engine, message["stream"])

    def send(self, message: Message) -> None:
        with self._sending:
            self._messages.send(message)

    def _stream(self, engine: Engine, stream: int) -> None:
        self._cancelled.clear()
        places: deque[Place] = deque()
        over = False

        def batches() -> Iterator[TokenBatch]:
            nonlocal over
            while (message := self._inbox.get())["kind"] == "batch":
                place = Place(*message["place"])
                places.append(place)
                yield place.batch(self._arena.memory(place.offset + place.size(engine.dimension)))
            over = True
            if message["kind"] == "stop":
                raise RunCancelled("the parent stopped the stream")

        try:
            for vectors in engine.run(batches(), Stop(self._cancelled)):
                place = places.popleft()
                memory = self._arena.memory(place.offset + place.size(engine.dimension))
                place.vectors(memory, engine.dimension)[:] = vectors
                # The moment is the same for both processes: the clock is the machine's.
                answer = {"kind": "done", "stream": stream, "offset": place.offset, "at": time.monotonic()}
                self.send({**answer, "batching": vars(engine.batching), **self._measured(engine)})
        except RunCancelled:
            pass  # the parent knows: it said so
        except Closed:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent decides what becomes of the batches
            words = str(error) if isinstance(error, FletcherError) else f"{type(error).__name__}: {error}"
            self.send({"kind": "failed", "stream": stream, "message": words})
        while not over:
            over = self._inbox.get()["kind"] in ("end", "stop")
        self.send({"kind": "over", "stream": stream})

    def _measured(self, engine: Engine) -> Message:
        """What there is for the metrics of the process that is scraped; mostly nothing."""
        measured: Message = {}
        if self._layers:
            measured["layers"] = [self._layers.popleft() for _ in range(len(self._layers))]
        if (now := time.monotonic()) - self._memory_told >= _MEMORY_EVERY:
            self._memory_told = now
            measured["memory"] = engine.device_memory()
        return measured

    def _read(self) -> None:
        try:
            while (message := self._messages.receive()) is not None:
                if message["kind"] == "stop":
                    self._cancelled.set()
                self._inbox.put(message)
        finally:
            os._exit(0)  # the parent is gone, and whatever the engine is at is for nobody


class _ToParent(logging.Handler):
    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.send({"kind": "log", "level": record.levelno, "name": record.name, "message": record.getMessage()})


def main(connection: int, memory: int, level: int) -> None:
    # Ctrl-C reaches every process of the terminal: the parent decides what becomes of the work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(Messages(socket.socket(fileno=connection)), Arena(memory))
    logging.basicConfig(level=level, handlers=[_ToParent(worker)])
    try:
        worker.work()
    except Closed:
        os._exit(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))

"""The smallest thing that does what the service's batcher does: one thread over `Embedder.stream`, a bounded queue."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from fletcher_core import Embedder
from fletcher_core.errors import Overloaded
from fletcher_core.stop import Stop
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.tokenizers.request import Column


class LocalBatcher:
    """Embeds what is submitted, in order. Attributes for tests: `submitted` texts, `queries`, `begun` calls of the
    engine, `most_waiting` texts that were ever accepted and not yet done; clear `gate` to hold the engine up."""

    def __init__(self, embedder: Embedder, room: int = 1_000_000):
        self.embedder = embedder
        self.room = room
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.submitted = self.queries = self.begun = self.waiting = self.most_waiting = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1)

    def submit(
        self, texts: Column, *, seconds: float | None = None, kind: str = "documents"
    ) -> "Future[EmbeddedTexts]":
        count = len(texts)
        with self._lock:
            if self.waiting + count > self.room:
                raise Overloaded(f"{self.waiting} texts wait, and there is room for {self.room}", 0.25)
            self.waiting += count
            self.most_waiting = max(self.most_waiting, self.waiting)
            self.submitted += count
            self.queries += count if kind == "queries" else 0
        future = self._thread.submit(self._run, texts, Stop.after(seconds))
        future.add_done_callback(lambda _: self._done(count))
        return future

    def close(self) -> None:
        self.gate.set()
        self._thread.shutdown(cancel_futures=True)

    def _done(self, count: int) -> None:
        with self._lock:
            self.waiting -= count

    def _run(self, texts: Column, stop: Stop) -> EmbeddedTexts:
        while not self.gate.wait(0.01):
            stop.check()
        self.begun += 1
        if self.failure is not None:
            raise self.failure
        ((_, result),) = self.embedder.stream([(None, texts)], stop, ahead=0)
        return result


def eventually(holds: object, seconds: float = 10.0) -> bool:
    """Whether `holds()` becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False

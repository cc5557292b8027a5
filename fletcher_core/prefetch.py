"""Run a producer on a thread of its own, a bounded number of items ahead of its consumer."""

import queue
import threading
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Generic, TypeVar

from fletcher_core.telemetry.context import in_this_context

T = TypeVar("T")


class Prefetched(Generic[T]):
    """The items of a producer, drawn up to `depth` ahead by a thread while a `with` block runs.

    Leaving the block early stops the thread after the item it is on and closes the producer, so that its `finally`
    blocks run. `over` is True once the last item was taken.
    """

    def __init__(self, items: Iterable[T], depth: int) -> None:
        self.over = False
        self._items = items
        self._ahead: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        produce = in_this_context(self._produce)
        self._thread = threading.Thread(target=produce, name="fletcher-prefetch", daemon=True)

    def __enter__(self) -> "Prefetched[T]":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def take(self, *, wait: bool = True) -> T | None:
        """The next item; None when there are no more, or when there is none yet and we do not `wait`.

        Raises:
            BaseException: whatever the producer raised, in the place of the item.
        """
        try:
            more, value = self._ahead.get(block=wait)
        except queue.Empty:
            return None
        if more:
            return value  # type: ignore[return-value]
        self.over = True
        if isinstance(value, BaseException):
            raise value
        return None

    def _put(self, entry: tuple[bool, T | BaseException | None]) -> None:
        while not self._stopped.is_set():
            try:
                self._ahead.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def _produce(self) -> None:
        iterator = iter(self._items)
        try:
            for item in iterator:
                self._put((True, item))
                if self._stopped.is_set():
                    return
            self._put((False, None))
        except BaseException as error:  # noqa: BLE001 - handed over whole to the consumer
            self._put((False, error))
        finally:
            if close := getattr(iterator, "close", None):
                close()


def prefetch(items: Iterable[T], depth: int) -> Generator[T]:
    """Yield `items` in order while a thread draws up to `depth` of them ahead.

    An exception of the producer is raised here in its place. Closing this iterator early ends the thread as leaving the
    block of `Prefetched` does.
    """
    with Prefetched(items, depth) as ahead:
        while True:
            item = ahead.take()
            if ahead.over:
                return
            yield item  # type: ignore[misc]

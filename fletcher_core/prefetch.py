"""Run a producer on a thread of its own, a bounded number of items ahead of its consumer."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

from fletcher_core.telemetry.context import in_this_context

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int) -> Generator[T]:
    """Yield `items` in order while a thread draws up to `depth` of them ahead.

    An exception of the producer is raised here in its place. Closing this iterator early stops the thread after the
    item it is on and closes the producer, so that its `finally` blocks run.
    """
    ahead: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                ahead.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                put((True, item))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001 - handed over whole to the consumer
            put((False, error))
        finally:
            if close := getattr(iterator, "close", None):
                close()

    thread = threading.Thread(target=in_this_context(produce), name="fletcher-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, value = ahead.get()
            if more:
                yield value  # type: ignore[misc]
            elif isinstance(value, BaseException):
                raise value
            else:
                return
    finally:
        stopped.set()
        thread.join()

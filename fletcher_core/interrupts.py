"""Ctrl-C at a command: the first one ends the work in order, the second one the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 130  # what shells expect of a process that Ctrl-C ended


@contextmanager
def orderly_then_at_once() -> Iterator[None]:
    """Inside, SIGINT raises KeyboardInterrupt once; another one ends the process without a word more.

    What is committed stays: segments appear whole or not at all, whatever the instruction at which a process ends.
    """

    def again(signum: int, frame: FrameType | None) -> None:
        os._exit(EXIT_STATUS)

    def first(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, again)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield
        return
    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

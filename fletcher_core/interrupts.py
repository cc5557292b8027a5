"""Ctrl-C at a command: the first one ends the work in order, the second one the process at once."""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 130  # what shells expect of a process that Ctrl-C ended
_RETRY_SECONDS = 0.01


@contextmanager
def orderly_then_at_once(*, to_the_end: bool = False) -> Iterator[None]:
    """Inside, SIGINT raises KeyboardInterrupt once; another one ends the process without a word more.

    What is committed stays: segments appear whole or not at all, whatever the instruction at which a process ends.

    A signal's handler raises in whatever the main thread runs, and in two places that goes wrong. Extension modules
    call Python while they are imported, and take its exception for another one, for none, or for a reason to abort:
    an import is waited for. From a finalizer or the callback of a weak reference an exception goes no further than
    `sys.unraisablehook`: it is raised once more.

    Args:
        to_the_end: after the block the process only ends. SIGINT ends it at once then, too: Python itself would print
            a traceback, or abort, where it waits for threads and calls what is registered for the end.
    """
    main_thread = _thread.get_ident()
    asked = 0
    asked_by_us = False
    ended = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal asked, asked_by_us
        if asked_by_us:
            asked_by_us = False
            if ended:
                return
        else:
            asked += 1
        if asked > 1 or ended:
            os._exit(EXIT_STATUS)
        if _in_import(frame):
            retry()
            return
        raise KeyboardInterrupt

    def retry() -> None:
        _thread.start_new_thread(ask_again, ())  # `threading` takes locks, which this thread may hold

    def ask_again() -> None:
        nonlocal asked_by_us
        time.sleep(_RETRY_SECONDS)
        if not ended:
            asked_by_us = True
            signal.pthread_kill(main_thread, signal.SIGINT)  # wakes it where it waits, as Ctrl-C does

    def unraisable(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            retry()
        else:
            report(lost)

    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield
        return
    before, report = signal.signal(signal.SIGINT, interrupt), sys.unraisablehook
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        ended = True
        sys.unraisablehook = report
        if not to_the_end:
            signal.signal(signal.SIGINT, before)


def _in_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False

"""Threads that compute, and those that answer callers: on a processor that both share, the second should come first."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Made = TypeVar("Made")


def at_niceness(niceness: int, make: Callable[[], Made]) -> Made:
    """What `make` makes, with threads that it begins `niceness` below this one's priority, as `nice` counts it.

    On Linux priority is a thread's, and threads inherit it from the one that begins them. Elsewhere it is the
    process's, and `make` is simply called; so it is where the system forbids threads to choose.
    """
    if not niceness or sys.platform != "linux":
        return make()

    def lowered() -> Made:
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + niceness))
        return make()

    with ThreadPoolExecutor(1) as other:  # a thread may lower its priority, and not take it back
        return other.submit(lowered).result()

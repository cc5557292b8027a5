"""Threads that compute come after those that answer, where the system lets threads choose."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fletcher_core.engines.priority import at_niceness


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="priority is a thread's on Linux alone")
def test_threads_that_are_begun_are_nicer_and_this_one_is_not() -> None:
    before = niceness()
    pool = at_niceness(3, lambda: (made := ThreadPoolExecutor(1), made.submit(int).result())[0])
    with pool:
        assert pool.submit(niceness).result() == min(19, before + 3)
    assert niceness() == before


def test_where_priorities_are_forbidden_it_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")  # as by a container's seccomp profile

    monkeypatch.setattr(os, "setpriority", forbidden)
    assert at_niceness(3, lambda: "made") == "made"

"""Work on several items side by side.

In: a function, items, a number of threads. Out: every item worked on, or the first failure raised.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from fletcher_core.telemetry.context import in_this_context

_T = TypeVar("_T")


def side_by_side(work: Callable[[_T], None], items: Sequence[_T], lanes: int) -> None:
    """Call `work` on every item, at most `lanes` at a time, begun in order. Returns when all calls have ended.

    After a failure no further item is begun, and the first failure is raised.
    """
    upcoming, lock = iter(items), threading.Lock()
    failures: list[BaseException] = []

    def lane() -> None:
        while True:
            with lock:
                item = next(upcoming, None) if not failures else None
            if item is None:
                return
            try:
                work(item)
            except BaseException as failure:  # noqa: BLE001 - raised again below, in the caller's thread
                failures.append(failure)

    # Daemons, unlike the threads of an executor: a server that is silent must not hold up the end of the process.
    others = [threading.Thread(target=in_this_context(lane), daemon=True) for _ in range(min(lanes, len(items)) - 1)]
    for thread in others:
        thread.start()
    lane()
    for thread in others:
        thread.join()
    if failures:
        raise failures[0]

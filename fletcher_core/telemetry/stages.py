"""When each stage of a run was busy: spans from all of its threads in, seconds and shares over time out."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from prometheus_client import Histogram

from fletcher_core.telemetry.metrics import STAGE_SECONDS

# (stage, when it began, when it ended), both of `time.perf_counter`.
Busy = Callable[[str, float, float], None]

_PARTS = 256
_FIRST_PART = 0.01  # seconds


def unwatched(stage: str, began: float, ended: float) -> None:
    """The `Busy` of whoever does not care."""


def observed(busy: Busy) -> Busy:
    """`busy`, told of spans that are counted in `STAGE_SECONDS` too. For whoever does the work and tells of it, so that
    each span is counted once however many listen."""

    def counting(stage: str, began: float, ended: float) -> None:
        _of(stage).observe(ended - began)
        busy(stage, began, ended)

    return counting


@cache
def _of(stage: str) -> Histogram:
    return STAGE_SECONDS.labels(stage)


class StageClock:
    """Adds up the spans of one run, in as much memory however long it is. Safe to call from several threads.

    Time is cut into equal parts; when they do not reach any more, neighbours are joined and each is twice as long.
    `also` is told of each piece too.
    """

    def __init__(self, also: Busy = unwatched) -> None:
        self.started = time.perf_counter()
        self._also = also
        self._lock = threading.Lock()
        self._width = _FIRST_PART
        self._parts: dict[str, np.ndarray] = {}  # seconds that a stage was busy, by part
        self._seconds: dict[str, float] = {}

    def busy(self, stage: str, began: float, ended: float) -> None:
        """`stage` worked from `began` to `ended`, of `time.perf_counter`."""
        self._also(stage, began, ended)
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + ended - began
            began, ended = began - self.started, ended - self.started
            while ended > _PARTS * self._width:
                self._join_neighbours()
            if stage not in self._parts:
                self._parts[stage] = np.zeros(_PARTS)
            parts, width = self._parts[stage], self._width
            first, last = max(0, int(began / width)), max(0, min(int(ended / width), _PARTS - 1))
            for part in range(first, last + 1):
                parts[part] += max(0.0, min(ended, (part + 1) * width) - max(began, part * width))

    def _join_neighbours(self) -> None:
        self._width *= 2
        for stage, parts in self._parts.items():
            joined = parts.reshape(-1, 2).sum(axis=1)
            self._parts[stage] = np.concatenate([joined, np.zeros(_PARTS - len(joined))])

    @contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        """`stage` works during the `with` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            observed(self.busy)(stage, began, time.perf_counter())

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.started

    def seconds(self, stage: str) -> float:
        """Seconds that a stage was busy, those of threads side by side added up."""
        return self._seconds.get(stage, 0.0)

    def shares(self, slices: int) -> dict[str, tuple[float, ...]]:
        """For each stage the share of each of `slices` equal parts of the time so far during which it was busy, 0 to 1.

        Where several threads were in a stage at once they count up to 1 together. To about a hundredth of the run.
        """
        edges = np.linspace(0.0, max(self.elapsed, 1e-9), slices + 1)
        with self._lock:
            ends = self._width * np.arange(_PARTS + 1)
            sums = {stage: np.concatenate([[0.0], np.cumsum(parts)]) for stage, parts in self._parts.items()}
        return {
            stage: tuple(np.minimum(np.diff(np.interp(edges, ends, total)) / np.diff(edges), 1.0).tolist())
            for stage, total in sums.items()
        }

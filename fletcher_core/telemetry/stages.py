"""When each stage of a run was busy: spans from all of its threads in, seconds and shares over time out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

# (stage, when it began, when it ended), both of `time.perf_counter`.
Busy = Callable[[str, float, float], None]


def unwatched(stage: str, began: float, ended: float) -> None:
    """The `Busy` of whoever does not care."""


class StageClock:
    """Collects the spans of one run. Safe to call from several threads."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._spans: list[tuple[str, float, float]] = []

    def busy(self, stage: str, began: float, ended: float) -> None:
        """`stage` worked from `began` to `ended`, of `time.perf_counter`."""
        self._spans.append((stage, began, ended))  # one operation: threads need no lock

    @contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        """`stage` works during the `with` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.busy(stage, began, time.perf_counter())

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.started

    def seconds(self, stage: str) -> float:
        """Seconds that a stage was busy, those of threads side by side added up."""
        return sum(ended - began for name, began, ended in list(self._spans) if name == stage)

    def shares(self, slices: int) -> dict[str, tuple[float, ...]]:
        """For each stage the share of each of `slices` equal parts of the time so far during which it was busy, 0 to 1.

        Where several threads were in a stage at once they count up to 1 together.
        """
        width = max(self.elapsed, 1e-9) / slices
        edges = self.started + width * np.arange(slices + 1)
        found: dict[str, np.ndarray] = {}
        for stage, began, ended in list(self._spans):
            within = np.minimum(ended, edges[1:]) - np.maximum(began, edges[:-1])
            found.setdefault(stage, np.zeros(slices))
            found[stage] += np.maximum(within, 0.0) / width
        return {stage: tuple(np.minimum(share, 1.0).tolist()) for stage, share in found.items()}

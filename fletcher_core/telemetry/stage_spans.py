"""The pieces of work that stages report anyway, as spans under the one of their run: few, however long the run is."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import Span

from fletcher_core.telemetry.stages import Busy, unwatched
from fletcher_core.telemetry.tracing import finished_span

SINGLE = 100
"""Pieces of each stage that have a span of their own."""
_MERGED_SECONDS = 1.0
_MERGED_SHARE = 0.01
# Delivery's pieces are calls to Longbow, which have spans of their own (longbow/client.py).
_ELSEWHERE = frozenset({"send"})


@dataclass
class _Merged:
    """Neighbouring pieces of a stage that become one span; moments of `time.perf_counter`."""

    began: float
    ended: float
    pieces: int = 0
    busy: float = 0.0


class StageSpans:
    """A `Busy` whose pieces become spans named after their stage. Safe to call from several threads.

    The first SINGLE pieces of a stage have a span each. Later ones are merged into spans of at least a second, or a
    hundredth of the run so far where that is more, with attributes `pieces` and `busy_s` (seconds of work): a run of
    ten hours has some 800 spans a stage, and of ten seconds 110. Call `close` when the run ends.
    """

    def __init__(self, parent: Span) -> None:
        self._parent = parent
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self._singles: dict[str, int] = {}
        self._merged: dict[str, _Merged] = {}

    def busy(self, stage: str, began: float, ended: float) -> None:
        """`stage` worked from `began` to `ended`, of `time.perf_counter`."""
        if stage in _ELSEWHERE:
            return
        with self._lock:
            singles = self._singles.get(stage, 0)
            if singles < SINGLE:
                self._singles[stage] = singles + 1
                due = None
            else:
                due = self._merge(stage, began, ended)
        if singles < SINGLE:
            finished_span(stage, began, ended, parent=self._parent)
        elif due is not None:
            self._end(stage, due)

    def close(self) -> None:
        """End the spans that are still open."""
        with self._lock:
            rest, self._merged = self._merged, {}
        for stage, merged in rest.items():
            self._end(stage, merged)

    def _merge(self, stage: str, began: float, ended: float) -> _Merged | None:
        """The merged piece, once it is long enough for a span."""
        merged = self._merged.setdefault(stage, _Merged(began, ended))
        merged.began, merged.ended = min(merged.began, began), max(merged.ended, ended)
        merged.pieces += 1
        merged.busy += ended - began
        wide = max(_MERGED_SECONDS, _MERGED_SHARE * (ended - self._started))
        return self._merged.pop(stage) if merged.ended - merged.began >= wide else None

    def _end(self, stage: str, merged: _Merged) -> None:
        attributes = {"pieces": merged.pieces, "busy_s": round(merged.busy, 6)}
        finished_span(stage, merged.began, merged.ended, parent=self._parent, attributes=attributes)


@contextmanager
def stages_of(span: Span | None = None) -> Iterator[Busy]:
    """The `Busy` of the block, which makes spans under `span` (None: the current one); where that is not recorded, it
    is `unwatched`."""
    parent = trace.get_current_span() if span is None else span
    if not parent.is_recording():
        yield unwatched
        return
    spans = StageSpans(parent)
    try:
        yield spans.busy
    finally:
        spans.close()

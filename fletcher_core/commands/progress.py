"""What a long command tells on standard error while it works: a bar on a terminal, now and then a line in a log."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from fletcher_core.commands.output import duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_LOG_SECONDS = 10.0
_LEAST_SECONDS = 1.0  # of a run, before its rate says anything


class Progress:
    """A context manager. `unit` is what is counted ("texts"), `stream` standard error by default.

    On a terminal a bar changes some times a second and is gone at the end; elsewhere a line comes every ten seconds.
    """

    def __init__(self, unit: str, stream: TextIO | None = None) -> None:
        self._unit = unit
        self._stream = stream or sys.stderr
        self._bar: RichProgress | None = None
        self._started = self._told_at = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._stream.isatty():
            self._bar = _bar(self._stream)
            self._bar.add_task("", total=None, said="", unit=self._unit)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int | None, said: str = "") -> None:
        """So many of `total` are done; None where the end is not known."""
        rate = done / max(time.monotonic() - self._started, 1e-9)
        if self._bar is not None:
            self._update(done, total, "; ".join(filter(None, [self._rate(done, total, rate), said])))
        elif self._is_time():
            of = f"{done:,} {self._unit}" if total is None else f"{done:,} of {total:,} {self._unit}"
            parts = [of, self._rate(done, total, rate), said]
            self._line(", ".join(part for part in parts if part))

    def say(self, text: str) -> None:
        """What is done just now, where nothing can be counted."""
        if self._bar is not None:
            self._update(0, None, text)
        elif self._is_time():
            self._line(text)

    def _rate(self, done: int, total: int | None, rate: float) -> str:
        if not done or time.monotonic() - self._started < _LEAST_SECONDS:
            return ""
        left = "" if total is None else f", {duration((total - done) / rate)} left"
        return f"{rate:,.0f} {self._unit}/s{left}"

    def _update(self, done: int, total: int | None, said: str) -> None:
        assert self._bar is not None
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, said=said)

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._told_at < _LOG_SECONDS:
            return False
        self._told_at = now
        return True

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def _bar(stream: TextIO) -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Counted(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None and not task.completed:
                return Text("")
            of = "" if task.total is None else f" of {int(task.total):,}"
            return Text(f"{int(task.completed):,}{of} {task.fields['unit']}")

    return RichProgress(
        BarColumn(bar_width=24),
        Counted(),
        TextColumn("{task.fields[said]}", markup=False),
        console=Console(file=stream, highlight=False),
        transient=True,
        refresh_per_second=4,
    )

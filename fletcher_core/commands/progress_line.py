"""What a long command tells while it works: a line that changes on a terminal, now and then a line in a log."""

import time
from typing import TextIO

_TERMINAL_SECONDS = 0.5
_LOG_SECONDS = 10.0


class ProgressLine:
    """Writes to `stream` at most twice a second on a terminal, else every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._shown_at = time.monotonic() - _TERMINAL_SECONDS if self._is_terminal else time.monotonic()
        self._width = 0

    def show(self, text: str) -> None:
        """Show it if it is time to."""
        now = time.monotonic()
        if now - self._shown_at < (_TERMINAL_SECONDS if self._is_terminal else _LOG_SECONDS):
            return
        self._shown_at = now
        if self._is_terminal:
            self._stream.write(f"\r{text.ljust(self._width)}")
            self._width = len(text)
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def end(self) -> None:
        """What is written next begins a new line."""
        if self._width:
            self._stream.write("\n")
            self._width = 0

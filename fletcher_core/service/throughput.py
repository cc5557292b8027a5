"""How many tokens a second the engine computes of late: batches and their times in, a rate out that neither a stall nor
small batches nor a slow time that is over spoil."""

import time
from dataclasses import dataclass

# How much of a new measurement goes into the rate; how much slower than before it may say the engine is, as a stall is
# no rate; and how many there must be before requests are turned away by it.
RATE_SHARE = 0.05
_SLOWEST = 3.0
_FIRST_MEASUREMENTS = 8


class Rate:
    """Tokens over seconds, each a moving average: batches that come back two at a time do not count as quick ones."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._measurements = 0

    @property
    def per_second(self) -> float:
        """0 while it is not known."""
        return self._tokens / self._seconds if self._measurements >= _FIRST_MEASUREMENTS else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens took so long."""
        self._measurements += 1
        if self._measurements == 1:
            self._tokens, self._seconds = float(tokens), seconds
        seconds = min(seconds, _SLOWEST * tokens * self._seconds / self._tokens)
        self._tokens += RATE_SHARE * (tokens - self._tokens)
        self._seconds += RATE_SHARE * (seconds - self._seconds)


@dataclass
class Since:
    """Tokens that came back since `began`, of `time.perf_counter`, and were no measurement."""

    began: float
    tokens: int = 0

    def begin(self) -> None:
        """Count from now on."""
        self.began, self.tokens = time.perf_counter(), 0

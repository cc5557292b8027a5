"""Which of several devices gets the next batch: the one that will be through with it first.

In: what each has in flight and how fast it was of late. Out: one of them, or none when all have enough. No clock and no
device: what it decides follows from its arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# A device that is slower than the fastest by more than this has less in flight, so that its oldest batch, which all
# later ones wait for, is not waited for much longer than another's.
_SLOWER = 2.0
_NEWEST_SHARE = 0.1  # of a new measurement in a rate


@dataclass(frozen=True)
class Load:
    """One device: `batches` and `tokens` in flight, its `rate` in tokens a second (0.0 before one is known), and the
    `depth`, how many batches it may have in flight at most. `is_open` is False while it takes no more."""

    batches: int
    tokens: int
    rate: float
    depth: int
    is_open: bool = True


class Rate:
    """Tokens a second of a device: a running mean, in which a batch counts by its seconds."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def value(self) -> float:
        """0.0 before the first measurement."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took `seconds`."""
        keep = 1.0 - _NEWEST_SHARE
        self._tokens = keep * self._tokens + tokens
        self._seconds = keep * self._seconds + max(seconds, 1e-6)


def rooms(loads: Sequence[Load]) -> list[int]:
    """How many more batches each device may have in flight: up to its depth, and less the slower it is; never fewer
    than one in all, so that its rate goes on being measured."""
    rates = _known(loads)
    fastest = max(rates, default=0.0)
    found = []
    for load, rate in zip(loads, rates, strict=True):
        most = max(1, min(load.depth, int(_SLOWER * load.depth * rate / fastest)))
        found.append(max(0, most - load.batches) if load.is_open else 0)
    return found


def choose(loads: Sequence[Load], tokens: int) -> int | None:
    """The index of the device that will be through first with a batch of `tokens`, among those that have room for one;
    None when none has. One whose rate is not known is taken to be as fast as the fastest."""
    rates, room = _known(loads), rooms(loads)
    open_to = [index for index in range(len(loads)) if room[index]]
    return min(open_to, key=lambda index: (loads[index].tokens + tokens) / rates[index], default=None)


def _known(loads: Sequence[Load]) -> list[float]:
    """Rates, with the fastest one for those that are not known; 1.0 where none is."""
    fastest = max((load.rate for load in loads), default=0.0) or 1.0
    return [load.rate or fastest for load in loads]

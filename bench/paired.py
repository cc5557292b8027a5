"""Is one tree slower than another, or was it the machine: the median of paired ratios, with its confidence interval.

A pair is two measurements taken right after another, so that what else the machine does hits both. The interval is made
of order statistics: it assumes nothing of the noise's distribution, and one wild pair does not move it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95
FEWEST_PAIRS = 6  # with fewer, not even the smallest and the largest ratio enclose the median with 95 % confidence


@dataclass(frozen=True)
class Verdict:
    """`ratio` is the median of new / old time; `low` and `high` enclose the true median with 95 % confidence."""

    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def certain(self) -> bool:
        """Enough pairs for an interval."""
        return self.pairs >= FEWEST_PAIRS

    @property
    def slower(self) -> bool:
        """Slower than before, beyond noise."""
        return self.certain and self.low > 1

    @property
    def faster(self) -> bool:
        return self.certain and self.high < 1

    def regressed(self, limit: float) -> bool:
        """The whole interval lies beyond `limit` (0.2: a fifth more time)."""
        return self.certain and self.low > 1 + limit


def compare(old: Sequence[float], new: Sequence[float]) -> Verdict:
    """The verdict on the paired times `old` and `new`."""
    ratios = sorted(after / before for before, after in zip(old, new, strict=True))
    rank = interval_rank(len(ratios))
    return Verdict(median(ratios), ratios[rank], ratios[-1 - rank], len(ratios))


def interval_rank(count: int) -> int:
    """How many ratios may be left out at each end: the interval still holds the median with the confidence asked for.

    The median lies below the k-th smallest of n values with the probability of fewer than k heads in n tosses.
    """
    rank, tail = 0, 2 * 0.5**count
    while rank < count // 2 and (tail := tail + 2 * comb(count, rank + 1) * 0.5**count) <= 1 - CONFIDENCE:
        rank += 1
    return rank

"""How many tokens a batch should have on this device: found by climbing a ladder of buckets, from timed dispatches.

Bigger batches fill a device better until it is full; beyond that they only take longer, and a GPU that also draws a
desktop kills what takes too long. In: the tokens and seconds of each dispatch. Out: `TokenBudget.current`.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import pairwise, takewhile
from statistics import median

from fletcher_core.errors import ConfigError

ALIGNMENT = 32  # tokens: the height of the tiles that matrix kernels work in
GAIN = 1.03  # a bigger bucket must give this many times the tokens/s
BOUND = 2.0  # times target_seconds: what a dispatch never takes on purpose
WINDOW = 5  # observations whose median measures a bucket
HASTY_WINDOW = 3  # observations running over the bound that are enough to flee from a bucket
LOOKAHEAD = 2  # buckets above the best to try: one may be slow alone, for how it falls into tiles
DRIFT = 0.2  # relative change of the rate at the chosen bucket ...
DRIFT_OBSERVATIONS = 5  # ... in so many observations running that makes it look again
LOOK_AGAIN = 500  # observations at the chosen bucket after which those above it get another chance
BACKOFF = 32  # waiting times double up to this many times


def token_buckets(largest: int, smallest: int = 64) -> tuple[int, ...]:
    """Sizes to round batches up to, so that a device sees few shapes.

    Powers of two times `smallest`, and from `largest` / 4 on steps of `largest` / 8, rounded up to a multiple of 32:
    near the top, where the work is done, little of a batch is filling.

    Args:
        largest: the last bucket, in tokens; a multiple of 32.
        smallest: the first bucket, in tokens; a multiple of 32.

    Returns:
        Tokens, ascending, all multiples of 32.

    Raises:
        ConfigError: one of them is not a positive multiple of 32, or `largest` is less than `smallest`.
    """
    if smallest < ALIGNMENT or smallest % ALIGNMENT or largest % ALIGNMENT or largest < smallest:
        raise ConfigError(
            f"token buckets from {smallest} to {largest}: both must be multiples of {ALIGNMENT}, the smaller one first"
        )
    doubled = takewhile(lambda size: 4 * size < largest, (smallest << shift for shift in range(largest.bit_length())))
    eighths = (_aligned(largest * part, 8) for part in range(2, 9))
    return tuple(sorted({smallest, *doubled, *(size for size in eighths if size >= smallest)}))


def round_up(tokens: int, buckets: Sequence[int]) -> int:
    """The smallest of `buckets` (ascending) that holds `tokens`.

    Beyond the last one, for a single text longer than the budget: the next multiple of an eighth of it, the eighth
    itself rounded up to a multiple of 32.
    """
    if tokens <= buckets[-1]:
        return buckets[bisect_left(buckets, tokens)]
    step = _aligned(buckets[-1], 8)
    return -(-tokens // step) * step


def _aligned(numerator: int, denominator: int) -> int:
    """The quotient, rounded up to a multiple of 32."""
    return -(-numerator // (denominator * ALIGNMENT)) * ALIGNMENT


class TokenBudget:
    """The batch size that a device runs best, learned while it works; deterministic given the observations.

    It measures a bucket (the median of five dispatches), tries the next one up, keeps it if that gives at least 3 %
    more tokens/s within `target_seconds`, and settles where two in a row do not. A bucket that takes much more than its
    share of the time is measured twice. From a bucket over `target_seconds` it steps down while it explores; once
    settled it stays, unless three dispatches running take over twice that, or the rate is off by over 20 % to one side
    for five running: then it explores anew from where it stands. Now and then, ever more rarely, it tries the buckets
    above again, as noise may have hidden a better one. The smallest bucket is never too slow.

    For one thread, the engine's; others may read `current`.
    """

    def __init__(
        self,
        buckets: Sequence[int],
        target_seconds: float = 0.010,
        *,
        start_tokens: int = 1024,
        relax_after: int = 200,
    ) -> None:
        """Start at the last bucket of at most `start_tokens`, or at the first one.

        Args:
            buckets: tokens, ascending; the only values that `current` takes.
            target_seconds: what one dispatch should take of the GPU's time at most.
            start_tokens: where to begin.
            relax_after: dispatches after which the cap of an allocation failure rises by one bucket.

        Raises:
            ConfigError: no buckets, or not positive and ascending; another value is not positive.
        """
        if not buckets or buckets[0] < 1 or any(low >= high for low, high in pairwise(buckets)):
            raise ConfigError(f"token buckets must be positive and ascending, got {list(buckets)}")
        if not target_seconds > 0 or relax_after < 1:
            raise ConfigError(f"must be positive: target_seconds={target_seconds}, relax_after={relax_after}")
        self._buckets = tuple(buckets)
        self._target = target_seconds
        self._top = len(self._buckets) - 1
        self._seconds: deque[float] = deque(maxlen=WINDOW)  # of dispatches of the current bucket, since it became that
        self._at = max(bisect_right(self._buckets, start_tokens) - 1, 0)
        self._look_after = LOOK_AGAIN  # observations
        self._explore()

        self._cap = self._top
        self._relaxed = False  # whether the cap rose since the last failure
        self._successes = 0  # dispatches since the cap last changed
        self._patience = self._relax_after = relax_after  # dispatches until the cap rises

    @property
    def current(self) -> int:
        """Tokens of a batch, padding up to the bucket included: one of the buckets, never above the cap."""
        return self._buckets[self._at]

    @property
    def settled(self) -> bool:
        """Whether the search is over for now."""
        return self._settled

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from one dispatch that succeeded.

        Args:
            tokens: its tokens, with the padding up to its bucket; only those of `current` are measured, the rest (in
                flight since before a change, or the last of a window) count as successes and no more.
            seconds: the GPU's time for it; one that is not positive and finite measures nothing.
        """
        self._relax_cap()
        if tokens != self.current or not 0 < seconds < math.inf:
            return
        self._seconds.append(seconds)
        if self._settled:
            if not (self._drifted(seconds) or self._over_bound()):
                self._look_again()
                return
            self._look_after = LOOK_AGAIN
            self._explore()
        if len(self._seconds) == WINDOW or self._over_bound():
            self._decide()

    def halve(self, tokens: int | None = None) -> None:
        """Cap the budget at half, after the device refused memory for a batch.

        The cap rises by one bucket after every `relax_after` dispatches, and half as often each time that this proves
        too early.

        Args:
            tokens: those of the batch that failed, so that several failures of batches made with the same budget halve
                it once; `current` if not given.
        """
        failed = self.current if tokens is None else tokens
        self._cap = min(self._cap, max(bisect_right(self._buckets, failed // 2) - 1, 0))
        if self._relaxed:
            self._patience = min(2 * self._patience, BACKOFF * self._relax_after)
        self._relaxed = False
        self._successes = 0
        if self._at > self._cap:
            self._move(self._cap)
            self._explore()

    def _explore(self) -> None:
        """Begin the search at the current bucket; what was measured of it stays."""
        self._settled = False
        self._steady = 0  # observations since it settled
        self._best: int | None = None
        self._best_rate = 0.0  # tokens/s at `_best`
        self._ceiling = self._top  # the last bucket not known to be over the target
        self._expected = math.inf  # seconds: a measurement well above this will be repeated once
        self._drift = 0  # observations running with a rate that is higher (> 0) or lower (< 0) by `DRIFT`

    def _decide(self) -> None:
        """The current bucket is measured: go on from it, or settle."""
        seconds = median(self._seconds)
        if seconds > (1 + DRIFT) * self._expected:
            self._expected = math.inf
            self._seconds.clear()  # once more: something else may have kept the device busy
            return
        rate = self.current / seconds
        if seconds > self._target:
            self._ceiling = max(self._at - 1, 0)
            if self._best is None and self._at > 0:
                # A smaller batch takes at least its share of the time, so this does not step too far.
                affordable = bisect_right(self._buckets, self.current * self._target / seconds) - 1
                self._move(min(max(affordable, 0), self._ceiling))
                return
        if self._best is None or (seconds <= self._target and rate >= GAIN * self._best_rate):
            self._best, self._best_rate = self._at, rate
        self._climb(seconds, self._best)

    def _climb(self, seconds: float, best: int) -> None:
        """Try the next bucket, given the `seconds` of the current one, if it may be better than `best`; else settle."""
        following = self._at + 1
        highest = min(best + LOOKAHEAD, self._ceiling, self._cap)
        expected = seconds * self._buckets[following] / self.current if following <= highest else math.inf
        if expected <= BOUND * self._target:
            self._move(following, expected)
        else:
            self._settled, self._steady = True, 0
            if self._at != best:
                self._move(best)

    def _look_again(self) -> None:
        """Count an observation at the settled bucket; after many, climb again in case the last climb was unlucky."""
        self._steady += 1
        if self._steady >= self._look_after and len(self._seconds) == WINDOW:
            self._look_after = min(2 * self._look_after, BACKOFF * LOOK_AGAIN)
            self._settled, self._ceiling = False, self._top
            self._climb(median(self._seconds), self._at)

    def _move(self, bucket: int, expected: float = math.inf) -> None:
        self._at, self._expected = bucket, expected
        self._seconds.clear()

    def _over_bound(self) -> bool:
        """Whether the last few dispatches took far too long and there is a smaller bucket to go to."""
        if self._at == 0 or len(self._seconds) < HASTY_WINDOW:
            return False
        return min(list(self._seconds)[-HASTY_WINDOW:]) > BOUND * self._target

    def _drifted(self, seconds: float) -> bool:
        """Count an observation at the settled bucket; whether enough of them running are off to the same side."""
        change = self.current / seconds / self._best_rate - 1
        side = 0 if abs(change) <= DRIFT else 1 if change > 0 else -1
        self._drift = self._drift + side if side * self._drift > 0 else side
        return abs(self._drift) >= DRIFT_OBSERVATIONS

    def _relax_cap(self) -> None:
        """Count a success; after enough of them raise the cap, and look above it if that is what stopped the search."""
        if self._cap == self._top:
            return
        self._successes += 1
        if self._successes < self._patience:
            return
        self._successes, self._relaxed = 0, True
        self._cap += 1
        if self._settled and self._at == self._cap - 1:
            self._explore()

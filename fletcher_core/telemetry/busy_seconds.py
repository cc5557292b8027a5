"""How much of each second there was work: word of its beginnings and ends in, a histogram of shares out.

No thread of its own: the seconds that passed since the last word are filled in at the next one, or at a scrape.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class BusySeconds(Collector):
    """A histogram with one observation a second, from the first piece of work on: the share of it, 0 to 1, during which
    at least one piece of work was under way. Safe to use from several threads.

    Args:
        name, documentation: as of any metric.
        buckets: upper bounds, ascending.
        registry: that shows it; None for a test's.
        clock: counts seconds.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(buckets)
        self._clock = clock
        self._lock = threading.Lock()
        self._working = 0  # pieces under way
        self._second: float | None = None  # when the one began that is not over yet
        self._looked = 0.0
        self._busy = 0.0  # seconds of it, until `_looked`
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        if registry is not None:
            registry.register(self)

    def began(self) -> None:
        """A piece of work begins."""
        with self._lock:
            self._look()
            self._working += 1

    def ended(self) -> None:
        """A piece of work that had begun is over."""
        with self._lock:
            self._look()
            self._working -= 1

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """The metric without its values."""
        yield HistogramMetricFamily(self._name, self._documentation)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The metric up to the last whole second."""
        with self._lock:
            if self._second is not None:
                self._look()
            counts, total = list(self._counts), self._sum
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        (family,) = self.describe()
        family.add_metric([], list(zip(bounds, accumulate(counts), strict=True)), total)
        yield family

    def _look(self) -> None:
        """Fill in the time since the last look. For those who hold the lock."""
        now = self._clock()
        if self._second is None:
            self._second = self._looked = now
        if over := int(now - self._second):
            end = self._second + 1.0
            self._observe(self._busy + (end - self._looked if self._working else 0.0), 1)
            self._observe(1.0 if self._working else 0.0, over - 1)
            self._second += over
            self._looked, self._busy = self._second, 0.0
        if self._working:
            self._busy += now - self._looked
        self._looked = now

    def _observe(self, share: float, times: int) -> None:
        share = min(share, 1.0)
        self._counts[bisect_left(self._bounds, share)] += times
        self._sum += share * times


class EngineWork:
    """What one stream of batches has out with its engine, as far as the thread that feeds it can tell.

    While that thread waits for texts the engine is taken to have no work: what it had is done or nearly so. At the
    end of a `with` block nothing is out any more.
    """

    def __init__(self, seconds: BusySeconds) -> None:
        self._seconds = seconds
        self._out = 0
        self._told = False

    def __enter__(self) -> "EngineWork":
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(False)

    def sent(self) -> None:
        """A batch goes to the engine."""
        self._out += 1
        self._tell(True)

    def answered(self) -> None:
        """The vectors of one have come."""
        self._out -= 1
        self._tell(self._out > 0)

    def waits(self) -> None:
        """There is no batch to send yet."""
        self._tell(False)

    def goes_on(self) -> None:
        """There is, or there will be none any more."""
        self._tell(self._out > 0)

    def _tell(self, working: bool) -> None:
        if working != self._told:
            self._told = working
            (self._seconds.began if working else self._seconds.ended)()

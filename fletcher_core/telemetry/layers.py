"""Where a batch's time goes, layer by layer: seconds of the batches that are sampled in, observations out.

An engine in a process of its own has its seconds carried to the process that is scraped.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache

from prometheus_client import Histogram

from fletcher_core.telemetry.metrics import LAYER_SECONDS

LayerSeconds = Mapping[str, float]


def layer_names(layers: int) -> tuple[str, ...]:
    """The steps of a model of so many blocks, in the order in which they are computed."""
    return ("embedding", *(f"layer_{number:02d}" for number in range(layers)), "pooling")


class Sampling:
    """Chooses every `every`-th batch; none if that is 0. For one thread."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._seen = 0

    def is_due(self) -> bool:
        """Whether the next batch is to be sampled."""
        if not self._every:
            return False
        self._seen += 1
        if self._seen < self._every:
            return False
        self._seen = 0
        return True


class LayerClock:
    """Measures the steps of one batch from the moment when it is made: `mark` after each of `layer_names`."""

    def __init__(self, layers: int) -> None:
        self._names = iter(layer_names(layers))
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def mark(self) -> None:
        """The next step is over."""
        now = time.perf_counter()
        self.seconds[next(self._names)] = now - self._last
        self._last = now


def observe_layers(seconds: LayerSeconds) -> None:
    """Count one sampled batch: seconds of each of `layer_names`. From any thread."""
    _observer(seconds)


def carry_layers(carrier: Callable[[LayerSeconds], None]) -> None:
    """Have `carrier` called instead, as this process is not the one that is scraped."""
    global _observer
    _observer = carrier


@cache
def _of(layer: str) -> Histogram:
    return LAYER_SECONDS.labels(layer)


def _observe(seconds: LayerSeconds) -> None:
    for layer, taken in seconds.items():
        _of(layer).observe(taken)


_observer: Callable[[LayerSeconds], None] = _observe

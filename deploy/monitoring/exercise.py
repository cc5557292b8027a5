"""Moves every metric of Fletcher, by real embedding and by counting directly what needs a failure to happen.

python -m deploy.monitoring.exercise --port 8080      # shows them at http://127.0.0.1:8080/metrics until it is ended
"""

import argparse
import random
import time
from collections.abc import Callable

from prometheus_client import start_http_server

from fletcher_core import Embedder
from fletcher_core.cache import VectorCache
from fletcher_core.telemetry import metrics
from fletcher_core.telemetry.layers import layer_names

_PAUSE_SECONDS = 0.05
_REASONS = ("overload", "deadline", "draining", "too_large", "unauthorized", "disconnected")
_STAGES = ("diff", "read", "tokenize", "queue", "guard", "write", "send")
_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "engines", "hum")


class Exercise:
    """Call `step` again and again: each moves every metric a little. Without an embedder, counts alone."""

    def __init__(self, seed: int, embedder: Embedder | None) -> None:
        self._random = random.Random(seed)
        self._embedder = embedder
        self._steps = 0
        self._breaker = {"longbow:3000": 0.0}
        self._looked_up = {"hit": 0.0, "miss": 0.0}
        metrics.BREAKER_STATE.ask(lambda: self._breaker)
        if embedder is None:
            metrics.CACHE_REQUESTS.ask(lambda: self._looked_up)
        # Those of a GPU, wherever this runs.
        memory = {"active": 2e9, "cache": 8e8, "peak": 3.6e9, "limit": 16e9}
        metrics.DEVICE_MEMORY.ask(lambda: memory)
        # And those of several.
        metrics.POOL_MEMORY.ask(lambda: {"0": 2e9, "1": 2e9})
        metrics.POOL_IN_FLIGHT.ask(lambda: {"0": 4.0, "1": 3.0})

    def step(self) -> None:
        """One batch and all that may happen around it."""
        self._steps += 1
        began = time.perf_counter()
        if self._embedder is not None:
            self._embedder.embed(self._texts())
        else:
            self._count_a_batch()
        seconds = time.perf_counter() - began
        metrics.QUEUE_TOKENS.set(self._random.randrange(4096))
        metrics.READY.set(1)
        for stage in _STAGES:
            metrics.STAGE_SECONDS.labels(stage).observe(self._random.expovariate(200))
        for route, status in (("/v1/embeddings", "200"), ("/embed", "200"), ("DoExchange", "OK"), ("/readyz", "200")):
            metrics.REQUEST_SECONDS.labels(route, status).observe(seconds + self._random.expovariate(100))
        for device in ("0", "1"):
            metrics.POOL_TOKENS.labels(device).inc(self._random.randint(20, 200))
            metrics.POOL_BUSY_SECONDS.labels(device).inc(seconds)
        metrics.LONGBOW_BYTES.labels("sent").inc(8 * 384 * 4)
        metrics.LONGBOW_BYTES.labels("received").inc(512)
        self._now_and_then()

    def _texts(self) -> list[str]:
        """Some of them again, for the cache to find."""
        return [
            " ".join(random.Random(self._random.randrange(5000)).choices(_WORDS, k=self._random.randint(4, 40)))
            for _ in range(8)
        ]

    def _count_a_batch(self) -> None:
        """What an embedder counts."""
        tokens = self._random.randint(50, 300)
        metrics.DEVICE_BUSY.began()
        metrics.DEVICE_BUSY.ended()
        metrics.VECTORS.inc(8)
        metrics.TOKENS.inc(tokens)
        metrics.STAGE_SECONDS.labels("compute").observe(0.01)
        metrics.BATCH_TOKENS.observe(tokens * 1.1)
        metrics.PADDING.observe(self._random.betavariate(1, 8))
        for layer in layer_names(6):
            metrics.LAYER_SECONDS.labels(layer).observe(0.001 * self._random.uniform(0.8, 1.2))
        self._looked_up["hit"] += 2
        self._looked_up["miss"] += 6

    def _now_and_then(self) -> None:
        """What goes wrong, one thing after the other."""
        events: list[Callable[[], None]] = [
            lambda: metrics.REQUEST_SECONDS.labels("/embed", "500").observe(0.4),
            lambda: metrics.REJECTED.labels(self._random.choice(_REASONS)).inc(),
            lambda: metrics.OUTPUT_INVALID.inc(),
            lambda: metrics.QUARANTINED.labels(self._random.choice(("invalid_text", "engine_failed"))).inc(),
            lambda: metrics.FAILOVERS.labels("mlx", "cpu", "lost").inc(),
            lambda: metrics.FAILOVERS.labels("cpu", "mlx", "recovered").inc(),
            lambda: metrics.POOL_CHANGES.labels("1", "lost").inc(),
            lambda: metrics.POOL_CHANGES.labels("1", "recovered").inc(),
            lambda: metrics.PANICS.labels("engine").inc(),
            lambda: self._breaker.update({"longbow:3000": self._random.choice((0.0, 1.0, 2.0))}),
        ]
        events[self._steps % len(events)]()


def _embedder() -> Embedder:
    return Embedder.load(layer_sample=2, cache=VectorCache(2_000_000))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-model", action="store_true", help="count without embedding anything")
    arguments = parser.parse_args()
    exercise = Exercise(arguments.seed, None if arguments.without_model else _embedder())
    start_http_server(arguments.port, addr="127.0.0.1", registry=metrics.REGISTRY)
    while True:
        exercise.step()
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main()

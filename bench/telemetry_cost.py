"""What metrics and the sampling of layers cost an embedding call.

Run: .venv/bin/python bench/telemetry_cost.py [--engine NAME] [--texts N] [--rounds N] [--json FILE]

Each round embeds the same texts once in each setting, one right after another and every second round in the opposite
order, so that what else the machine does hits all alike. The peer is what users have: metrics on, no layer sampled.
Figures are medians of the rounds' ratios to it, with the interval that holds the median with 95 % confidence; of the
processor time of the whole process, which a shared machine distorts less, and of the wall clock. "metrics off" replaces
every count by nothing. The last lines say the same without noise: how often a call counts, times what a count takes.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

from paired import compare
from prometheus_client import CollectorRegistry, Counter, Histogram
from results import JSON_OPTION, Row, write_results
from texts import mixed_texts

from fletcher_core import Embedder
from fletcher_core.telemetry.busy_seconds import BusySeconds
from fletcher_core.telemetry.metrics import DEVICE_BUSY

SAMPLES = (1000, 100, 10)
PEER = "metrics, no layers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="cpu", help="as Embedder.load takes it")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    texts = mixed_texts(options.texts)
    plain = Embedder.load(engine=options.engine)
    settings: dict[str, Callable[[], Any]] = {PEER: lambda: plain.embed(texts)}
    for every in SAMPLES:
        sampled = Embedder.load(engine=options.engine, layer_sample=every)
        settings[f"1 batch in {every}"] = lambda sampled=sampled: sampled.embed(texts)
    settings["metrics off"] = lambda: without_metrics(lambda: plain.embed(texts))
    for run in settings.values():
        run()
    print(f"{plain.engine.name} {plain.engine.precision}, {len(texts):,} texts, {options.rounds} rounds")
    rounds = [measure(settings, backwards=bool(number % 2)) for number in range(options.rounds)]
    rows = []
    print(f"{'':<20}{'CPU s':>8}{'ratio':>9}{'95 %':>18}{'wall s':>9}{'ratio':>9}{'95 %':>18}")
    for name in settings:
        line = f"{name:<20}"
        for kind, figure in enumerate(("CPU", "wall")):
            seconds = [measured[name][kind] for measured in rounds]
            verdict = compare([measured[PEER][kind] for measured in rounds], seconds)
            interval = f"{verdict.low:.4f} - {verdict.high:.4f}"
            line += f"{median(seconds):>{8 + kind}.3f}{verdict.ratio:>9.4f}{interval:>18}"
            rows.append(Row(f"{name}, {figure}", round(median(seconds), 4), "s", PEER, round(1 / verdict.ratio, 4)))
        print(line)
    rows.append(counting(lambda: plain.embed(texts), median(measured[PEER][0] for measured in rounds)))
    write_results(options.json, "telemetry_cost", rows)


def measure(settings: dict[str, Callable[[], Any]], backwards: bool) -> dict[str, tuple[float, float]]:
    """Seconds of each setting, of the processor and of the wall clock."""
    order = list(settings.items())
    found = {}
    for name, run in reversed(order) if backwards else order:
        wall, busy = time.perf_counter(), time.process_time()
        run()
        found[name] = time.process_time() - busy, time.perf_counter() - wall
    return found


@contextmanager
def replaced(count: Callable[..., None]) -> Iterator[None]:
    """`count` in place of whatever counts."""
    with (
        patch.object(Counter, "inc", count),
        patch.object(Histogram, "observe", count),
        patch.object(BusySeconds, "began", count),
        patch.object(BusySeconds, "ended", count),
    ):
        yield


def without_metrics(run: Callable[[], Any]) -> None:
    with replaced(lambda *_: None):
        run()


def counting(run: Callable[[], Any], seconds: float) -> Row:
    """How often a call counts, and what share of its processor time that takes."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    with replaced(count):
        run()
    each = seconds_of_a_count()
    share = calls * each / seconds
    print(f"{calls:,} counts of {1e6 * each:.2f} us are {100 * share:.3f} % of the processor time")
    return Row("counts, share of the processor time", round(share, 6), "share")


def seconds_of_a_count(times: int = 20_000) -> float:
    """Of the dearest kind, as it is called."""
    registry = CollectorRegistry()
    observed = Histogram("observed", "For a benchmark.", buckets=[0.1 * n for n in range(1, 16)], registry=registry)
    counted = Counter("counted", "For a benchmark.", registry=registry)
    dearest = 0.0
    for call in (lambda: observed.observe(0.7), lambda: counted.inc(3), _word_of_work):
        started = time.process_time()
        for _ in range(times):
            call()
        dearest = max(dearest, (time.process_time() - started) / times)
    return dearest


def _word_of_work() -> None:
    DEVICE_BUSY.began()
    DEVICE_BUSY.ended()


if __name__ == "__main__":
    main()

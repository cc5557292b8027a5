"""Pieces of work become few spans that tell the same, however many there are and whichever threads report them."""

import random
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fletcher_core.telemetry import unwatched
from fletcher_core.telemetry.stage_spans import SINGLE, StageSpans, stages_of
from fletcher_core.telemetry.tracing import span


def test_the_first_pieces_have_a_span_each_and_later_ones_share(spans: InMemorySpanExporter) -> None:
    with span("run") as run:
        stages = StageSpans(run)
        start = stages._started
        for piece in range(10_000):  # 50 ms of work every 60 ms: ten minutes
            stages.busy("compute", start + piece * 0.06, start + piece * 0.06 + 0.05)
        stages.close()
    made = [each for each in spans.get_finished_spans() if each.name == "compute"]
    merged = [each for each in made if each.attributes]
    assert len(made) - len(merged) == SINGLE
    assert len(made) < SINGLE + 300  # 594 s by the second would be 594
    assert sum(each.attributes["pieces"] for each in merged) == 10_000 - SINGLE
    assert sum(each.attributes["busy_s"] for each in merged) == pytest.approx((10_000 - SINGLE) * 0.05, rel=1e-3)
    for earlier, later in pairwise(merged):
        assert earlier.end_time <= later.start_time
    for each in merged[:-1]:
        assert each.end_time - each.start_time >= 0.99e9


@pytest.mark.parametrize("hours", [1, 10, 100])
def test_a_long_run_has_hundreds_of_spans_a_stage(hours: int, spans: InMemorySpanExporter) -> None:
    with span("run") as run:
        stages = StageSpans(run)
        for piece in range(hours * 360):
            at = stages._started + piece * 10.0
            stages.busy("compute", at, at + 0.9)
        stages.close()
    assert len(spans.get_finished_spans()) < 1200


def test_threads_lose_no_piece(spans: InMemorySpanExporter) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with span("run") as run:
        stages = StageSpans(run)

        def report(number: int) -> None:
            random_ = random.Random(seed + number)
            for _ in range(2000):
                at = stages._started + random_.uniform(0.0, 20.0)
                stages.busy(random_.choice(["compute", "write"]), at, at + 0.01)

        threads = [threading.Thread(target=report, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stages.close()
    pieces = [each.attributes.get("pieces", 1) for each in spans.get_finished_spans() if each.name != "run"]
    assert sum(pieces) == 8000


def test_where_nothing_is_recorded_nobody_watches(sampled: object, tmp_path: Path) -> None:
    with stages_of() as busy:
        assert busy is unwatched


def test_a_block_that_fails_ends_its_open_spans(spans: InMemorySpanExporter) -> None:
    with span("run"), pytest.raises(ZeroDivisionError), stages_of() as busy:  # noqa: PT012 - what fails is the block
        for piece in range(SINGLE + 5):
            busy("compute", float(piece), piece + 0.1)
        raise ZeroDivisionError
    assert sum(e.attributes.get("pieces", 1) for e in spans.get_finished_spans() if e.name == "compute") == SINGLE + 5

"""The pictures of a run: valid SVG in Markdown, to scale."""

import itertools
import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from dataclasses import fields

from hypothesis import example, given
from hypothesis import strategies as st

from fletcher_core.stream import SLICES
from fletcher_core.telemetry import LENGTH_EDGES, StageSeconds
from fletcher_dagster.pictures import (
    BAR,
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    STEPS,
    TOP,
    WIDTH,
    lengths_markdown,
    stages_markdown,
    throughput_markdown,
    throughput_svg,
)

SVG = "{http://www.w3.org/2000/svg}"


def corners(svg: str) -> list[tuple[int, int]]:
    """Where each step begins and ends, in pixels."""
    path = ET.fromstring(svg).find(f"{SVG}path")
    assert path is not None
    start = re.match(r"M(\d+) (\d+)", path.attrib["d"])
    assert start is not None
    x, y = int(start[1]), int(start[2])
    found = []
    for rise, run in re.findall(r"v(-?\d+)h(\d+)", path.attrib["d"]):
        found += [(x, y + int(rise)), (x + int(run), y + int(rise))]
        x, y = found[-1]
    return found


def test_the_markdown_holds_a_readable_svg() -> None:
    markdown = throughput_markdown([(1.0, 400.0), (2.0, 300.0)])
    assert markdown is not None
    prefix = "![texts per second](data:image/svg+xml;base64,"
    assert markdown.startswith(prefix)
    picture = b64decode(markdown.removeprefix(prefix).removesuffix(")"), validate=True).decode()
    assert ET.fromstring(picture).tag == f"{SVG}svg"
    assert "400" in picture
    assert "2.0 s" in picture


@given(
    st.lists(st.tuples(st.floats(0.001, 2000.0), st.floats(0.0, 1e6)), min_size=1, max_size=400), st.floats(0.0, 100.0)
)
@example([(1000.0, 1e6 * (number % 2)) for number in range(400)], 0.0)
def test_every_picture_is_one_that_the_ui_shows_at_once(spans: list[tuple[float, float]], begin: float) -> None:
    ends = itertools.accumulate((span for span, _ in spans), initial=begin)
    samples = list(zip(itertools.islice(ends, 1, None), (rate for _, rate in spans), strict=True))
    assert len(throughput_markdown(samples, begin) or "") < 1000
    for x, y in corners(throughput_svg(samples, begin)):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM


def test_the_steps_are_to_scale() -> None:
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners(throughput_svg([(5.0, 50.0), (10.0, 100.0)]))
    assert (y0, y2) == (y1, y3)
    assert x1 == x2
    assert x1 - x0 == x3 - x2 > 0
    floor = HEIGHT - BOTTOM
    assert floor - y2 == 2 * (floor - y0) > 0


def test_the_time_before_the_first_text_stays_empty() -> None:
    svg = throughput_svg([(10.0, 80.0)], begin=5.0)
    left = corners(throughput_svg([(10.0, 80.0)]))[0][0]
    (x0, _), (x1, _) = corners(svg)
    assert x0 - left == x1 - x0 > 0


def test_a_long_run_keeps_its_shape_in_few_steps() -> None:
    samples = [(float(at + 1), 100.0 if at < 5000 else 50.0) for at in range(10_000)]
    line = corners(throughput_svg(samples))
    assert len(line) <= 2 * STEPS
    assert line[0][1] == line[len(line) // 4][1] < line[-1][1] == line[-len(line) // 4][1]
    assert line[-1][0] == corners(throughput_svg(samples[-1:]))[-1][0]


def test_a_run_that_embedded_nothing_has_no_picture() -> None:
    assert throughput_markdown([]) is None


def test_a_run_that_stood_still_divides_by_nothing() -> None:
    assert "<svg" in throughput_svg([(0.0, 0.0), (0.0, 0.0)])


def test_a_busy_stage_shows_where_and_as_much_as_it_was_busy() -> None:
    table = stages_markdown({"diff": (1.0, 0.0, 0.0, 0.0), "compute": (0.0, 0.5, 1.0, 0.0)}, 8.0)
    assert table is not None
    assert table.splitlines() == [
        "| busy | mean | over 8.0 s, delivery included |",
        "|---|---|---|",
        "| diff | 25% | `█▁▁▁` |",
        "| compute | 38% | `▁▅█▁` |",
    ]


def test_all_stages_fit_what_the_ui_shows_at_once() -> None:
    stages = {stage.name: (1.0,) * SLICES for stage in fields(StageSeconds)}
    assert len(stages_markdown(stages, 123_456.7) or "") < 1000


def test_a_run_without_stages_has_no_picture_of_them() -> None:
    assert stages_markdown({}, 1.0) is None


def lengths(**counts: int) -> tuple[int, ...]:
    """Counts by the place of their bin: `b1=2` are two texts in the second one."""
    return tuple(counts.get(f"b{place}", 0) for place in range(len(LENGTH_EDGES) + 1))


def test_lengths_are_bars_to_scale_without_the_empty_ends() -> None:
    table = lengths_markdown(lengths(b1=500, b3=2000, b4=1))
    assert table is not None
    assert table.splitlines() == [
        "| tokens | texts | |",
        "|---|---|---|",
        f"| 9 to 16 | 500 | `{'█' * (BAR // 4)}` |",
        "| 17 to 32 | 0 | ` ` |",
        f"| 33 to 64 | 2,000 | `{'█' * BAR}` |",
        "| 65 to 128 | 1 | `▏` |",
    ]


def test_every_bin_has_its_name() -> None:
    assert "| 1 to 8 | 1 |" in (lengths_markdown(lengths(b0=1)) or "")
    last = f"b{len(LENGTH_EDGES)}"
    assert f"| over {LENGTH_EDGES[-1]:,} | 1 |" in (lengths_markdown(lengths(**{last: 1})) or "")


def test_all_lengths_fit_what_the_ui_shows_at_once() -> None:
    assert len(lengths_markdown((123_456_789,) * (len(LENGTH_EDGES) + 1)) or "") < 1000


def test_a_run_without_texts_has_no_picture_of_their_lengths() -> None:
    assert lengths_markdown(()) is None
    assert lengths_markdown(lengths()) is None

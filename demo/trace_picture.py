"""The picture of a trace for the documentation: the demo's materialization in, a waterfall of its spans as SVG out.

Run: .venv/bin/python -m demo.trace_picture docs/images/trace.svg [--asset docstrings_embeddings] [--rows 600]

It is a real run under Dagster, in a folder of its own, delivered to the embedded Longbow server. Each stage's spans are
in one line; an engine without much to do shows gaps.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import dagster as dg
import duckdb
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from demo import home, tables
from demo.launch import launch
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded

WIDTH, LEFT, RIGHT = 1000, 178, 24
LINE, BAR, TOP, BOTTOM = 30, 16, 74, 116

# Of each line: its label, a colour, and what it is.
LINES = {
    "dagster.asset": ("#5b6470", "Dagster's step for one asset"),
    "materialize": ("#2f4b7c", "Fletcher's run"),
    "diff": ("#8c6bb1", "what changed in the table"),
    "read": ("#3f8fb5", "rows to embed, from disk"),
    "tokenize": ("#2a9d8f", "texts to tokens"),
    "compute": ("#d1495b", "the engine"),
    "guard": ("#e9a03b", "a look at every vector"),
    "write": ("#6a994e", "segments of the store"),
    "longbow.DoPut": ("#b5651d", "rows to Longbow"),
    "longbow.DoGet": ("#cf9f66", "rows read back"),
}


@dataclass(frozen=True)
class Bar:
    """A span; seconds since the trace began."""

    name: str
    began: float
    ended: float


def waterfall(spans: Sequence[ReadableSpan], title: str) -> str:
    """An SVG of one trace: a line for each name of a span, bars by time, the least of them two pixels wide."""
    started = min(span.start_time or 0 for span in spans)
    bars = [
        Bar(span.name, ((span.start_time or 0) - started) / 1e9, ((span.end_time or 0) - started) / 1e9)
        for span in sorted(spans, key=lambda span: span.start_time or 0)
    ]
    seconds = max(bar.ended for bar in bars)
    lines = [name for name in LINES if any(bar.name == name for bar in bars)]
    height = TOP + LINE * len(lines) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / seconds
    floor = TOP + LINE * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="28" font-size="16" font-weight="bold" fill="#1d232b">{escape(title)}</text>',
        f'<text x="20" y="48" fill="#5b6470">{len(spans)} spans in {seconds:.2f} s, of one trace</text>',
    ]
    for tick in ticks(seconds):
        x = LEFT + tick * scale
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{floor}" stroke="#dfe3e8"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 18}" fill="#5b6470" text-anchor="middle">{tick:g} s</text>')
    for number, name in enumerate(lines):
        y = TOP + LINE * number
        of_line = [bar for bar in bars if bar.name == name]
        parts.append(f'<text x="{LEFT - 12}" y="{y + 13}" text-anchor="end" fill="#1d232b">{escape(name)}</text>')
        for bar in of_line:
            x, width = LEFT + bar.began * scale, max(2.0, (bar.ended - bar.began) * scale - 0.5)
            color = LINES[name][0]
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" rx="1.5" fill="{color}"/>')
    parts.extend(legend(bars, lines, floor + 42))
    return "\n".join([*parts, "</svg>", ""])


def legend(bars: Sequence[Bar], lines: Sequence[str], y: int) -> list[str]:
    """What each colour is, with the number of spans and their seconds, in rows of three."""
    parts = []
    stages = [name for name in lines if name not in ("dagster.asset", "materialize")]
    for number, name in enumerate(stages):
        x, row = 20 + number % 3 * 326, y + number // 3 * 24
        color, what = LINES[name]
        of_line = [bar for bar in bars if bar.name == name]
        busy = sum(bar.ended - bar.began for bar in of_line)
        said = f"{what}: {len(of_line)} span{'s' * (len(of_line) != 1)}, {busy:.2f} s"
        parts.append(f'<rect x="{x}" y="{row - 10}" width="12" height="12" rx="2" fill="{color}"/>')
        parts.append(f'<text x="{x + 18}" y="{row}" font-size="12" fill="#1d232b">{escape(said)}</text>')
    return parts


def ticks(seconds: float) -> list[float]:
    """About eight round moments from 0 on."""
    step = next(size for size in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0) if seconds / size <= 9)
    return [round(step * number, 1) for number in range(int(seconds / step) + 1)]


def traced_run(asset: str, rows: int) -> list[ReadableSpan]:
    """The spans of a materialization of one of the demo's assets with `rows` of its rows."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLETCHER_DEMO_FOLDER"] = folder
        from demo import definitions  # which reads the variable

        home.prepare(Path(folder))
        tables.build(Path(folder))
        with duckdb.connect(str(tables.database(Path(folder)))) as connection:
            connection.execute(
                f"DELETE FROM docstrings WHERE id NOT IN (SELECT id FROM docstrings ORDER BY id LIMIT {rows})"
            )
        ensure_embedded(definitions.LONGBOW)  # its start, and the model's loading, are not what is to be seen
        definitions.fletcher.embedder()
        try:
            with dg.DagsterInstance.get() as instance:
                job = dg.Definitions(
                    assets=definitions.defs.assets,
                    jobs=[dg.define_asset_job("one", selection=asset)],
                    resources={"fletcher": definitions.fletcher},
                    executor=dg.in_process_executor,
                ).resolve_job_def("one")
                launch(instance, job, "00000000-0000-4000-8000-000000000000")
        finally:
            stop_embedded(definitions.LONGBOW)
    return list(exporter.get_finished_spans())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--asset", default="docstrings_embeddings")
    parser.add_argument("--rows", type=int, default=600)
    options = parser.parse_args()
    spans = traced_run(options.asset, options.rows)
    title = f"A Dagster materialization of {options.asset}: {options.rows:,} texts"
    options.picture.write_text(waterfall(spans, title), "utf-8")
    print(f"{len(spans)} spans to {options.picture}")


if __name__ == "__main__":
    main()

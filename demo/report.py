"""How the demo shows what happened: the table of both runs and the hits of a search, as lines of text."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

_COLUMNS = (
    ("new", "rows_new", "{:,.0f}"),
    ("changed", "rows_changed", "{:,.0f}"),
    ("unchanged", "rows_unchanged", "{:,.0f}"),
    ("deleted", "rows_deleted", "{:,.0f}"),
    ("quarantined", "rows_quarantined", "{:,.0f}"),
    ("embedded", "rows_embedded", "{:,.0f}"),
    ("texts/s", "texts_per_s", "{:,.0f}"),
    ("tokens/s", "tokens_per_s", "{:,.0f}"),
    ("bytes sent", "bytes_sent", "{:,.0f}"),
    ("seconds", "seconds_total", "{:,.1f}"),
)


@dataclass(frozen=True)
class AssetRun:
    """The embeddings of one source in one run: the names of both and the asset's `fletcher/...` figures."""

    run: str
    source: str
    figures: Mapping[str, float]


def asset_runs(run: str, result: dg.JobExecutionResult) -> list[AssetRun]:
    """The embedding assets that `result` materialized, with their figures."""
    runs = []
    for event in result.get_asset_materialization_events():
        figures = _figures(event.step_materialization_data.materialization.metadata)
        if figures and event.asset_key:
            runs.append(AssetRun(run, event.asset_key.to_user_string().removesuffix("_embeddings"), figures))
    return runs


def table_lines(runs: Sequence[AssetRun]) -> list[str]:
    """A table with one line a run and source."""
    rows = [["run", "source", *(title for title, _, _ in _COLUMNS)]]
    for run in runs:
        cells = [form.format(run.figures[key]) if key in run.figures else "-" for _, key, form in _COLUMNS]
        rows.append([run.run, run.source, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(names + numbers).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def hit_lines(cosine: float, row_id: str, text: str, width: int = 110) -> list[str]:
    """A hit's cosine and id on one line, the beginning of its text on the next."""
    return [f"  {cosine:5.3f}  {row_id}", "         " + textwrap.shorten(text, width - 9, placeholder=" ...")]


def _figures(metadata: Mapping[str, dg.MetadataValue]) -> dict[str, float]:
    return {
        key.removeprefix("fletcher/"): value.value
        for key, value in metadata.items()
        if isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue)
        if key.startswith("fletcher/") and value.value is not None
    }

"""From the report of a run to the metadata that Dagster shows.

In come one partition's `RunReport` and what its vector store now holds; out goes a dictionary: Dagster's standard
keys where one exists, `fletcher/...` keys as plain ints and floats for everything that is worth a plot over time. The
UI's table keeps its order, so that what people look for first comes first.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from fletcher_core.telemetry import RunReport, StageSeconds
from fletcher_dagster.columns import column_schema
from fletcher_dagster.pictures import lengths_markdown, stages_markdown, throughput_markdown

_SHOWN = 20  # quarantined rows; all of them are in the store
_SLOWEST = 10  # rows of a run over many partitions
_SHORT = 200  # characters of an id or a message in a table
# Figures of what mostly does not happen: a line and a plot of zeros would only hide the others.
_SAID_ABOVE_ZERO = {
    *("fletcher/rows_stale", "fletcher/rows_skipped_empty", "fletcher/rows_truncated", "fletcher/rows_retried"),
    *("fletcher/cache_hit_rate", "fletcher/padding_share", "fletcher/memory_cache_evictions"),
    *("fletcher/engine_failures", "fletcher/standby_batches"),
    *(f"fletcher/seconds_{stage.name}" for stage in fields(StageSeconds)),
}


def run_metadata(
    report: RunReport,
    *,
    schema: pa.Schema,
    folder: str | Path,
    collection: str,
    partitioned: bool,
    delivered: bool,
    limited: bool = False,
    trace: str = "",
    lineage: dg.TableColumnLineage | None = None,
    quarantined: pa.Table | None = None,
    dashboard_url: str = "",
    pictures: bool = True,
) -> dict[str, Any]:
    """The metadata of one materialization.

    Args:
        schema: of the store's segments.
        folder: of the generation that was written.
        collection: name of the store, which readers and searches go by: Dagster's name of the table.
        delivered: whether the run had a Longbow to deliver to.
        limited: whether the run may leave rows to following ones, so that none left is worth saying.
        trace: id of the trace that was recorded; '' for none.
        lineage: of the columns; None when it is not known.
        quarantined: rows that were set aside (id, reason, message), of which the first are shown.
        dashboard_url: of a dashboard of Fletcher's metrics; '' for none.
        pictures: False leaves out the pictures and the slowest rows: most of the bytes, which a run over thousands of
            partitions stores thousands of times.
    """
    shown, slowest = (_pictures(report), _slowest(report)) if pictures else ({}, {})
    entries = {
        "dagster/partition_row_count" if partitioned else "dagster/row_count": report.rows_in_store,
        "fletcher/rows_embedded": report.embedded,
        "fletcher/texts_per_s": round(report.texts_per_s, 1),
        **_trouble(report),
        **quarantined_metadata([quarantined] if quarantined is not None else []),
        **shown,
        **_rows(report, limited),
        **(_delivery(report) if delivered else {}),
        **_speed(report),
        **slowest,
        **_memory_cache(report),
        **_made_by(report),
        **({"fletcher/dashboard": dg.MetadataValue.url(dashboard_url)} if dashboard_url else {}),
        **({"fletcher/trace_id": trace} if trace else {}),
        "dagster/table_name": collection,
        "dagster/uri": folder if isinstance(folder, str) else folder.absolute().as_uri(),
        "dagster/column_schema": column_schema(schema),
        **({"dagster/column_lineage": lineage} if lineage else {}),
    }
    return {key: value for key, value in entries.items() if value != 0 or key not in _SAID_ABOVE_ZERO}


def commit_line(report: RunReport) -> str:
    """What happened to a partition in one sentence, for the list of events: without what did not happen."""
    kinds = ("new", "changed", "stale", "unchanged", "deleted", "quarantined", "remaining")
    counts = [f"{getattr(report, kind):,} {kind}" for kind in kinds if getattr(report, kind)]
    rows = f"{report.rows_in_store:,} rows in the store" + (f": {', '.join(counts)}" if counts else "")
    speed = f"{report.seconds_total:,.1f} s ({report.texts_per_s:,.0f} texts/s)"
    return f"{rows}; " + (f"embedded {report.embedded:,} texts in {speed}" if report.embedded else "embedded nothing")


def run_summary_metadata(reports: Sequence[RunReport], seconds: float) -> dict[str, Any]:
    """The figures of a run over many partitions, under keys of their own, `fletcher/run_...`, and its pictures.

    Args:
        reports: one for each partition.
        seconds: wall time of the run, which is less than the sum over partitions that went through together.
    """

    def total(figure: str) -> int:
        return sum(getattr(report, figure) for report in reports)

    def rate(count: int) -> float:
        return round(count / seconds, 1) if seconds > 0 else 0.0

    kinds = ("embedded", "unchanged", "deleted", "quarantined", "remaining")
    together = _together(reports) if reports else None
    return {
        "fletcher/run_partitions": len(reports),
        **{f"fletcher/run_rows_{kind}": total(kind) for kind in kinds},
        "fletcher/run_texts_per_s": rate(total("embedded")),
        "fletcher/run_tokens_per_s": rate(total("tokens")),
        "fletcher/run_seconds": round(float(seconds), 4),
        **(_pictures(together) | _slowest(together) if together else {}),
    }


def _together(reports: Sequence[RunReport]) -> RunReport:
    """The last report, whose timeline and stages are the whole run's, with the texts of all."""
    slowest = sorted((row for report in reports for row in report.slowest), key=lambda row: row.seconds, reverse=True)
    lengths = [sum(counts) for counts in zip(*(report.lengths for report in reports), strict=True)]
    return replace(reports[-1], lengths=tuple(lengths), slowest=tuple(slowest[:_SLOWEST]))


def _trouble(report: RunReport) -> dict[str, str]:
    """In words what stood in the way; nothing where nothing did."""
    said = {
        "fletcher/note": report.note,
        "fletcher/engine_problem": report.engine_problem,
        "fletcher/longbow_problem": report.delivery.problem,
    }
    return {key: words for key, words in said.items() if words}


def _rows(report: RunReport, limited: bool) -> dict[str, int]:
    return {
        "fletcher/rows_new": report.new,
        "fletcher/rows_changed": report.changed,
        "fletcher/rows_unchanged": report.unchanged,
        "fletcher/rows_deleted": report.deleted,
        "fletcher/rows_quarantined": report.quarantined,
        "fletcher/rows_stale": report.stale,
        "fletcher/rows_skipped_empty": report.skipped,
        "fletcher/rows_truncated": report.truncated,
        "fletcher/rows_retried": report.retried,
        **({"fletcher/rows_remaining": report.remaining} if limited or report.remaining else {}),
    }


def _speed(report: RunReport) -> dict[str, Any]:
    """Also how often the engine failed, and what another computed in its place: both cost time."""
    figures: dict[str, Any] = {
        "fletcher/tokens_per_s": round(report.tokens_per_s, 1),
        "fletcher/cache_hits": report.cache_hits,
        "fletcher/cache_hit_rate": round(report.cache_hit_rate, 4),
        "fletcher/padding_share": round(float(report.padding_share), 4),
        "fletcher/tokenize_share": round(float(report.tokenize_share), 6),
        "fletcher/engine_failures": report.engine_failures,
        "fletcher/standby_batches": report.standby_batches,
        "fletcher/seconds_total": round(report.seconds_total, 4),
    }
    stages = asdict(report.seconds).items()
    figures |= {f"fletcher/seconds_{stage}": round(seconds, 4) for stage, seconds in stages}
    return figures


def _pictures(report: RunReport) -> dict[str, dg.MetadataValue[Any]]:
    """What the run looked like, for as much of it as there is something to show."""
    pictures = {
        "fletcher/throughput": throughput_markdown(report.timeline, report.seconds.diff),
        "fletcher/stages": stages_markdown(report.stages, report.seconds_with_delivery),
        "fletcher/lengths": lengths_markdown(report.lengths),
    }
    return {key: dg.MetadataValue.md(picture) for key, picture in pictures.items() if picture}


def _slowest(report: RunReport) -> dict[str, dg.MetadataValue[Any]]:
    if not report.slowest:
        return {}
    table = _table(
        {"id": "string", "tokens": "int", "milliseconds": "float"},
        [(row.id[:_SHORT], row.tokens, round(row.seconds * 1000, 3)) for row in report.slowest],
    )
    return {"fletcher/slowest": table}


def quarantined_metadata(tables: Sequence[pa.Table]) -> dict[str, dg.MetadataValue[Any]]:
    """The first quarantined rows (id, reason, message) of all as a table; nothing without any."""
    rows = [row for table in tables for row in table.slice(0, _SHOWN).to_pylist()][:_SHOWN]
    names = ("id", "reason", "message")
    shown = [tuple(str(row[name])[:_SHORT] for name in names) for row in rows]
    return {"fletcher/quarantined": _table(dict.fromkeys(names, "string"), shown)} if rows else {}


def _table(types: dict[str, str], rows: Sequence[Sequence[str | int | float]]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(zip(types, row, strict=True))) for row in rows],
        dg.TableSchema([dg.TableColumn(name, type_) for name, type_ in types.items()]),
    )


def _memory_cache(report: RunReport) -> dict[str, int | float]:
    """The counters of the embedder's cache in memory, since this process made it."""
    if report.cache is None:
        return {}
    return {
        "fletcher/memory_cache_hits": report.cache.hits,
        "fletcher/memory_cache_misses": report.cache.misses,
        "fletcher/memory_cache_evictions": report.cache.evictions,
        "fletcher/memory_cache_bytes": report.cache.bytes,
        "fletcher/memory_cache_hit_rate": round(report.cache.hit_rate, 4),
    }


def _delivery(report: RunReport) -> dict[str, Any]:
    delivery = report.delivery
    return {
        "fletcher/rows_searchable": delivery.searchable,
        "fletcher/rows_pending": delivery.pending,
        "fletcher/rows_applied": delivery.applied,
        "fletcher/rows_sent": delivery.sent,
        "fletcher/bytes_sent": delivery.bytes_sent,
        "fletcher/longbow_dataset": report.generation,
    }


def _made_by(report: RunReport) -> dict[str, str]:
    return {
        "fletcher/model": report.card.name,
        "fletcher/fingerprint": report.card.fingerprint,
        "fletcher/device": report.device,
        "fletcher/engine": f"{report.engine} {report.precision}",
        "fletcher/tokenizer": report.tokenizer,
    }

"""From the report of a run to the metadata that Dagster shows.

In come one partition's `RunReport` and what its vector store now holds; out goes a dictionary: Dagster's standard
keys where one exists, `fletcher/...` keys as plain ints and floats for everything that is worth a plot over time.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from fletcher_core.telemetry import RunReport
from fletcher_dagster.columns import column_schema
from fletcher_dagster.pictures import lengths_markdown, stages_markdown, throughput_markdown

_SHOWN = 20  # quarantined rows; all of them are in the store
_SLOWEST = 10  # rows of a run over many partitions
_SHORT = 200  # characters of an id or a message in a table


def run_metadata(
    report: RunReport,
    *,
    schema: pa.Schema,
    folder: Path,
    partitioned: bool,
    delivered: bool,
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
        delivered: whether the run had a Longbow to deliver to.
        trace: id of the trace that was recorded; '' for none.
        lineage: of the columns; None when it is not known.
        quarantined: rows that were set aside (id, reason, message), of which the first are shown.
        dashboard_url: of a dashboard of Fletcher's metrics; '' for none.
        pictures: False leaves out the pictures and the slowest rows: most of the bytes, which a run over thousands of
            partitions stores thousands of times.
    """
    return {
        "dagster/partition_row_count" if partitioned else "dagster/row_count": report.rows_in_store,
        "dagster/table_name": report.generation,
        "dagster/uri": folder.absolute().as_uri(),
        "dagster/column_schema": column_schema(schema),
        **({"dagster/column_lineage": lineage} if lineage else {}),
        **({"fletcher/dashboard": dg.MetadataValue.url(dashboard_url)} if dashboard_url else {}),
        **_rows(report),
        **_quarantined(quarantined),
        **_speed(report),
        **(_pictures(report) if pictures else {}),
        **_engine_health(report),
        **_memory_cache(report),
        **(_delivery(report) if delivered else {}),
        **_texts(report),
        **({"fletcher/trace_id": trace} if trace else {}),
    }


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
    return {
        "fletcher/run_partitions": len(reports),
        **{f"fletcher/run_rows_{kind}": total(kind) for kind in kinds},
        "fletcher/run_texts_per_s": rate(total("embedded")),
        "fletcher/run_tokens_per_s": rate(total("tokens")),
        "fletcher/run_seconds": round(float(seconds), 4),
        **(_pictures(_together(reports)) if reports else {}),
    }


def _together(reports: Sequence[RunReport]) -> RunReport:
    """The last report, whose timeline and stages are the whole run's, with the texts of all."""
    slowest = sorted((row for report in reports for row in report.slowest), key=lambda row: row.seconds, reverse=True)
    lengths = [sum(counts) for counts in zip(*(report.lengths for report in reports), strict=True)]
    return replace(reports[-1], lengths=tuple(lengths), slowest=tuple(slowest[:_SLOWEST]))


def _rows(report: RunReport) -> dict[str, int]:
    return {
        "fletcher/rows_new": report.new,
        "fletcher/rows_changed": report.changed,
        "fletcher/rows_stale": report.stale,
        "fletcher/rows_unchanged": report.unchanged,
        "fletcher/rows_deleted": report.deleted,
        "fletcher/rows_skipped_empty": report.skipped,
        "fletcher/rows_quarantined": report.quarantined,
        "fletcher/rows_truncated": report.truncated,
        "fletcher/rows_embedded": report.embedded,
        "fletcher/rows_remaining": report.remaining,
        "fletcher/cache_hits": report.cache_hits,
    }


def _speed(report: RunReport) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "fletcher/texts_per_s": round(report.texts_per_s, 1),
        "fletcher/tokens_per_s": round(report.tokens_per_s, 1),
        "fletcher/padding_share": round(float(report.padding_share), 4),
        "fletcher/cache_hit_rate": round(report.cache_hit_rate, 4),
        "fletcher/tokenize_share": round(float(report.tokenize_share), 6),
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
    shown: dict[str, dg.MetadataValue[Any]] = {
        key: dg.MetadataValue.md(picture) for key, picture in pictures.items() if picture
    }
    if report.slowest:
        shown["fletcher/slowest"] = _table(
            {"id": "string", "tokens": "int", "milliseconds": "float"},
            [(row.id[:_SHORT], row.tokens, round(row.seconds * 1000, 3)) for row in report.slowest],
        )
    return shown


def _quarantined(rows: pa.Table | None) -> dict[str, dg.MetadataValue[Any]]:
    if rows is None or not rows.num_rows:
        return {}
    names = ("id", "reason", "message")
    shown = [tuple(str(row[name])[:_SHORT] for name in names) for row in rows.slice(0, _SHOWN).to_pylist()]
    return {"fletcher/quarantined": _table(dict.fromkeys(names, "string"), shown)}


def _table(types: dict[str, str], rows: Sequence[Sequence[str | int | float]]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(zip(types, row, strict=True))) for row in rows],
        dg.TableSchema([dg.TableColumn(name, type_) for name, type_ in types.items()]),
    )


def _engine_health(report: RunReport) -> dict[str, int | str]:
    """How often the engine failed, and what others did in its place; in words only where something happened."""
    figures: dict[str, int | str] = {
        "fletcher/engine_failures": report.engine_failures,
        "fletcher/standby_batches": report.standby_batches,
        "fletcher/rows_retried": report.retried,
    }
    return figures | ({"fletcher/engine_problem": report.engine_problem} if report.engine_problem else {})


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
    figures: dict[str, Any] = {
        "fletcher/bytes_sent": delivery.bytes_sent,
        "fletcher/longbow_rows_sent": delivery.sent,
        "fletcher/longbow_rows_applied": delivery.applied,
        "fletcher/longbow_rows_searchable": delivery.searchable,
        "fletcher/longbow_rows_pending": delivery.pending,
        "fletcher/longbow_dataset": report.generation,
    }
    return figures | ({"fletcher/longbow_problem": delivery.problem} if delivery.problem else {})


def _texts(report: RunReport) -> dict[str, str]:
    texts = {
        "fletcher/model": report.card.name,
        "fletcher/fingerprint": report.card.fingerprint,
        "fletcher/device": report.device,
        "fletcher/engine": f"{report.engine} {report.precision}",
        "fletcher/tokenizer": report.tokenizer,
    }
    return texts | ({"fletcher/note": report.note} if report.note else {})

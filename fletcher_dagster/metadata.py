"""From the report of a run to the metadata that Dagster shows.

In come one partition's `RunReport` and what its vector store now holds; out goes a dictionary: Dagster's standard
keys where one exists, `fletcher/...` keys as plain ints and floats for everything that is worth a plot over time.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from fletcher_core.telemetry import RunReport
from fletcher_dagster.pictures import stages_markdown, throughput_markdown

_COLUMN_NOTES = {
    "id": "The row's id in the source.",
    "op": "upsert, or delete when the row left the source.",
    "content_hash": "MD5 of the text that was embedded.",
    "metadata_hash": "MD5 of the metadata columns.",
    "tokens": "Tokens of the text before any cut.",
    "truncated": "Whether the text was too long for the model and was cut.",
    "replaces": "Sequence of the version that this one supersedes.",
    "partition_key": "The partition the row belongs to; empty without partitions.",
    "fingerprint": "Identity of the model and its settings.",
    "sequence": "Grows with every version of every row; the row's id in Longbow.",
    "segment": "The commit that wrote the row.",
    "embedded_at": "When it was written.",
    "vector": "The embedding; null in a delete.",
}


def run_metadata(
    report: RunReport,
    *,
    live_rows: int,
    schema: pa.Schema,
    folder: Path,
    partitioned: bool,
    delivered: bool,
    trace: str = "",
) -> dict[str, Any]:
    """The metadata of one materialization.

    Args:
        live_rows: rows that the store holds for the asset, or for the partition when `partitioned`.
        schema: of the store's segments.
        folder: of the generation that was written.
        delivered: whether the run had a Longbow to deliver to.
        trace: id of the trace that was recorded; '' for none.
    """
    return {
        "dagster/partition_row_count" if partitioned else "dagster/row_count": live_rows,
        "dagster/table_name": report.generation,
        "dagster/uri": folder.absolute().as_uri(),
        "dagster/column_schema": column_schema(schema),
        **_rows(report),
        **_speed(report),
        **_engine_health(report),
        **_memory_cache(report),
        **(_delivery(report) if delivered else {}),
        **_texts(report),
        **({"fletcher/trace_id": trace} if trace else {}),
    }


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """The store's columns as Dagster describes a table."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                str(field.type),
                description=_COLUMN_NOTES.get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


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
    pictures = {
        "fletcher/throughput": throughput_markdown(report.timeline, report.seconds.diff),
        "fletcher/stages": stages_markdown(report.stages, report.seconds_with_delivery),
    }
    return figures | {key: dg.MetadataValue.md(picture) for key, picture in pictures.items() if picture}


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

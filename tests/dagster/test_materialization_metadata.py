"""The report of a run as metadata: standard keys, stable names, plain numbers that the UI can plot."""

from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from fletcher_core.cache import CacheStatistics
from fletcher_core.models.card import ModelCard
from fletcher_core.store.quarantine import ROW_SCHEMA
from fletcher_core.telemetry import LENGTH_EDGES, DeliveryCounts, Progress, RunReport, SlowRow, StageSeconds
from fletcher_dagster.metadata import commit_line, run_metadata, run_summary_metadata
from fletcher_dagster.progress import progress_line

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("vector", pa.list_(pa.float32(), 2))])

ALWAYS = {
    *(f"fletcher/rows_{kind}" for kind in ["new", "changed", "unchanged", "deleted", "quarantined", "embedded"]),
    *(f"fletcher/rows_{state}" for state in ["sent", "applied", "searchable", "pending"]),
    "fletcher/bytes_sent",
    "fletcher/cache_hits",
    "fletcher/texts_per_s",
    "fletcher/tokens_per_s",
    "fletcher/tokenize_share",
    "fletcher/seconds_total",
}
ABOVE_ZERO = {
    *(f"fletcher/rows_{kind}" for kind in ["stale", "skipped_empty", "truncated", "retried", "remaining"]),
    *(f"fletcher/seconds_{stage}" for stage in ["diff", "read", "tokenize", "compute", "guard", "write", "send"]),
    *("fletcher/cache_hit_rate", "fletcher/padding_share", "fletcher/engine_failures", "fletcher/standby_batches"),
    *(f"fletcher/memory_cache_{counter}" for counter in ["hits", "misses", "evictions", "bytes", "hit_rate"]),
}
EVERY_STAGE = StageSeconds(*(0.1 * (stage + 1) for stage in range(7)))
CACHE = CacheStatistics(30, 10, 4, 6, 9_000, 10_000)


def report(**changes: Any) -> RunReport:
    figures: dict[str, Any] = {
        "run_id": "run",
        "partition_key": "",
        "generation": "docs-model-2-0000",
        "card": ModelCard("model", "f00d", 2),
        "engine": "openvino",
        "device": "a processor",
        "precision": "bf16",
        "tokenizer": "wordpiece-avx2",
        "new": 5,
        "changed": 1,
        "stale": 0,
        "unchanged": 3,
        "deleted": 2,
        "null_text": 1,
        "empty_text": 2,
        "null_ids": 3,
        "duplicate_ids": 0,
        "quarantined": 0,
        "truncated": 0,
        "cache_hits": 2,
        "embedded": 4,
        "tokens": 30,
        "padded_tokens": 40,
        "rows_in_store": 9,
        "seconds_total": 2.0,
        "seconds": StageSeconds(diff=0.5, tokenize=0.1, compute=1.0),
        "delivery": DeliveryCounts(sent=6, bytes_sent=600, applied=9, searchable=9),
        "timeline": ((1.0, 4.0), (2.0, 3.0)),
        "stages": {"compute": (0.5, 1.0)},
        "seconds_with_delivery": 2.5,
    }
    return RunReport(**{**figures, **changes})


def metadata(made_of: RunReport, *, partitioned: bool = False, delivered: bool = True, **more: Any) -> dict[str, Any]:
    return run_metadata(
        made_of,
        schema=SCHEMA,
        folder=Path("/vectors/docs/docs-model-2-0000"),
        collection="docs",
        partitioned=partitioned,
        delivered=delivered,
        **more,
    )


def numbers(values: dict[str, Any]) -> set[str]:
    return {name for name, value in values.items() if type(value) in (int, float)}


def test_every_number_is_there_plain_and_of_a_stable_kind() -> None:
    busy = report(
        **dict.fromkeys(("stale", "truncated", "retried", "remaining", "engine_failures", "standby_batches"), 1),
        seconds=EVERY_STAGE,
        cache=CACHE,
    )
    values = metadata(busy)
    found = numbers(values)
    assert found == ALWAYS | ABOVE_ZERO | {"dagster/row_count"}
    assert {name for name in found if any(word in name for word in ("seconds", "_per_s", "share", "rate"))} == {
        name for name in found if type(values[name]) is float
    }


def test_of_what_did_not_happen_only_the_zeros_that_are_news_are_shown() -> None:
    counts = ("new", "changed", "unchanged", "deleted", "null_text", "empty_text", "null_ids", "cache_hits", "embedded")
    nothing = dict.fromkeys((*counts, "tokens", "padded_tokens", "rows_in_store"), 0)
    idle = report(
        **nothing, seconds_total=0.0, seconds=StageSeconds(), delivery=DeliveryCounts(), timeline=(), stages={}
    )
    values = metadata(idle)
    assert numbers(values) == ALWAYS | {"dagster/row_count"}
    assert not any(values[name] for name in numbers(values))
    assert metadata(idle, limited=True)["fletcher/rows_remaining"] == 0  # none are left: the following runs are done


def test_what_people_look_for_first_comes_first() -> None:
    troubled = report(lengths=LENGTHS, note="a note", delivery=DeliveryCounts(problem="it is down"))
    assert list(metadata(troubled, dashboard_url="https://grafana/d/1"))[:8] == [
        "dagster/row_count",
        "fletcher/rows_embedded",
        "fletcher/texts_per_s",
        "fletcher/note",
        "fletcher/longbow_problem",
        "fletcher/throughput",
        "fletcher/stages",
        "fletcher/lengths",
    ]


def test_a_partitions_event_says_in_a_sentence_what_happened() -> None:
    assert commit_line(report()) == (
        "9 rows in the store: 5 new, 1 changed, 3 unchanged, 2 deleted; embedded 4 texts in 2.0 s (2 texts/s)"
    )
    same = report(new=0, changed=0, unchanged=9, deleted=0, embedded=0)
    assert commit_line(same) == "9 rows in the store: 9 unchanged; embedded nothing"


def test_figures_come_from_where_they_say() -> None:
    values = metadata(report())
    assert values["fletcher/rows_skipped_empty"] == 6
    assert values["fletcher/texts_per_s"] == 2.0
    assert values["fletcher/padding_share"] == 0.25
    assert values["fletcher/tokenize_share"] == 0.05
    assert values["fletcher/tokenizer"] == "wordpiece-avx2"
    assert values["fletcher/engine"] == "openvino bf16"
    assert values["dagster/uri"] == "file:///vectors/docs/docs-model-2-0000"
    assert values["dagster/table_name"] == "docs"  # what readers and searches ask for, and what the definition says
    assert values["fletcher/longbow_dataset"] == "docs-model-2-0000"


def test_the_cache_in_memory_shows_where_there_is_one() -> None:
    assert metadata(report())["fletcher/cache_hit_rate"] == 0.3333
    assert not [name for name in metadata(report()) if "memory_cache" in name]
    values = metadata(report(cache=CACHE))
    found = {name.removeprefix("fletcher/memory_cache_"): values[name] for name in values if "memory_cache" in name}
    assert found == {"hits": 30, "misses": 10, "evictions": 4, "bytes": 9_000, "hit_rate": 0.75}


def test_a_partitions_rows_are_not_called_the_assets() -> None:
    values = metadata(report(), partitioned=True)
    assert values["dagster/partition_row_count"] == 9
    assert "dagster/row_count" not in values


def test_without_longbow_nothing_is_said_of_it() -> None:
    assert not [name for name in metadata(report(), delivered=False) if "longbow" in name or "sent" in name]


def test_trouble_and_notes_are_said() -> None:
    troubled = report(delivery=DeliveryCounts(problem="it is down"), note="the model changed")
    values = metadata(troubled)
    assert values["fletcher/longbow_problem"] == "it is down"
    assert values["fletcher/note"] == "the model changed"
    assert "fletcher/longbow_problem" not in metadata(report())


def test_the_schema_is_dagsters() -> None:
    schema = metadata(report())["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchema)
    assert [(column.name, column.type, column.constraints.nullable) for column in schema.columns] == [
        ("id", "string", False),
        ("vector", "fixed_size_list<item: float>[2]", True),
    ]


def test_dagster_accepts_all_of_it() -> None:
    materialization = dg.AssetMaterialization("docs", metadata=metadata(report(lengths=LENGTHS)))
    for picture in ("throughput", "stages", "lengths"):
        assert isinstance(materialization.metadata[f"fletcher/{picture}"], dg.MarkdownMetadataValue)


LENGTHS = (0, 3, *(0,) * (len(LENGTH_EDGES) - 1))


def test_the_slowest_rows_are_a_table() -> None:
    assert "fletcher/slowest" not in metadata(report())
    slow = report(slowest=(SlowRow("b", 900, 0.25), SlowRow("x" * 5000, 9, 0.0015)))
    table = metadata(slow)["fletcher/slowest"]
    assert [(column.name, column.type) for column in table.schema.columns] == [
        ("id", "string"), ("tokens", "int"), ("milliseconds", "float"),
    ]  # fmt: skip
    assert [record.data for record in table.records] == [
        {"id": "b", "tokens": 900, "milliseconds": 250.0},
        {"id": "x" * 200, "tokens": 9, "milliseconds": 1.5},
    ]


def test_the_first_quarantined_rows_are_a_table() -> None:
    assert "fletcher/quarantined" not in metadata(report(), quarantined=ROW_SCHEMA.empty_table())
    rows = [{"id": str(row), "reason": "invalid_text", "message": "a byte" * 100} for row in range(30)]
    aside = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    table = metadata(report(quarantined=30), quarantined=aside, pictures=False)["fletcher/quarantined"]
    assert [record.data["id"] for record in table.records] == [str(row) for row in range(20)]
    assert table.records[0].data["reason"] == "invalid_text"
    assert len(table.records[0].data["message"]) == 200


def test_the_pictures_can_be_left_out() -> None:
    made_of = report(lengths=LENGTHS, slowest=(SlowRow("a", 1, 1.0),))
    with_them, without = metadata(made_of), metadata(made_of, pictures=False)
    names = {"throughput", "stages", "lengths", "slowest"}
    assert set(with_them) - set(without) == {f"fletcher/{name}" for name in names}
    assert {**with_them, **without} == with_them


def test_rows_left_for_later_runs_are_said() -> None:
    assert metadata(report(remaining=7))["fletcher/rows_remaining"] == 7


def test_the_dashboard_is_a_link() -> None:
    assert "fletcher/dashboard" not in metadata(report())
    link = metadata(report(), dashboard_url="https://grafana/d/1")["fletcher/dashboard"]
    assert link == dg.MetadataValue.url("https://grafana/d/1")


def test_a_run_over_many_partitions_is_summed_up_over_its_own_time() -> None:
    summary = run_summary_metadata([report(), report(quarantined=2, remaining=5, embedded=6)], 4.0)
    pictures = {"fletcher/throughput", "fletcher/stages"}
    assert pictures <= summary.keys()
    summary = {name: value for name, value in summary.items() if name not in pictures}
    assert summary == {
        "fletcher/run_partitions": 2,
        "fletcher/run_rows_embedded": 10,
        "fletcher/run_rows_unchanged": 6,
        "fletcher/run_rows_deleted": 4,
        "fletcher/run_rows_quarantined": 2,
        "fletcher/run_rows_remaining": 5,
        "fletcher/run_texts_per_s": 2.5,
        "fletcher/run_tokens_per_s": 15.0,
        "fletcher/run_seconds": 4.0,
    }
    nothing = run_summary_metadata([], 0)
    assert {name: type(value) for name, value in nothing.items()} == {
        name: type(value) for name, value in summary.items()
    }
    assert not any(nothing.values())
    dg.AssetObservation("docs", metadata=summary)


def test_progress_says_how_long_it_will_take() -> None:
    assert progress_line(Progress(250, 1000, 50.0, 10.0)) == "250 of 1,000 rows, 50 texts/s, about 30 s left"
    assert progress_line(Progress(10, 36_010, 1.0, 1.0)).endswith("about 60 min left")
    assert progress_line(Progress(1, 10_001, 1.0, 1.0)).endswith("about 2 h 47 min left")
    assert progress_line(Progress(1000, 1000, 50.0, 20.0)) == "1,000 of 1,000 rows, 50 texts/s"

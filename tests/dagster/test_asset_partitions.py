"""Dagster's partitions as slices of a source."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from fletcher_core.errors import ConfigError
from fletcher_core.sources import DuckDBTable, Partition
from fletcher_dagster.partitions import partition_slice

SOURCE = DuckDBTable("shop.duckdb", table="reviews", partition_column="day")


def test_no_partitions_is_the_whole_source() -> None:
    assert partition_slice(SOURCE, None, "") == Partition()


def test_a_day_is_a_half_open_window() -> None:
    slice_ = partition_slice(SOURCE, dg.DailyPartitionsDefinition("2026-01-01"), "2026-02-28")
    assert slice_ == Partition(
        key="2026-02-28",
        column="day",
        start=datetime(2026, 2, 28, tzinfo=UTC),
        end=datetime(2026, 3, 1, tzinfo=UTC),
    )


def test_a_window_follows_the_definitions_own_time_zone() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    definition = dg.DailyPartitionsDefinition("2026-01-01", timezone="Europe/Berlin")
    slice_ = partition_slice(SOURCE, definition, "2026-03-29")
    assert slice_.start is not None
    assert slice_.end is not None
    assert slice_.start.replace(tzinfo=berlin) == datetime(2026, 3, 29, tzinfo=berlin)
    assert (slice_.end.timestamp() - slice_.start.timestamp()) / 3600 == 23


@pytest.mark.parametrize(
    ("definition", "key", "hours"),
    [
        (dg.HourlyPartitionsDefinition("2026-01-01-00:00"), "2026-01-01-05:00", 1),
        (dg.WeeklyPartitionsDefinition("2026-01-04"), "2026-01-11", 24 * 7),
    ],
    ids=["hourly", "weekly"],
)
def test_every_kind_of_time_window_works(definition: dg.TimeWindowPartitionsDefinition, key: str, hours: int) -> None:
    slice_ = partition_slice(SOURCE, definition, key)
    assert slice_.start is not None
    assert slice_.end is not None
    assert (slice_.end - slice_.start).total_seconds() == hours * 3600


@pytest.mark.parametrize(
    "definition",
    [dg.StaticPartitionsDefinition(["en", "de"]), dg.DynamicPartitionsDefinition(name="languages")],
)
def test_a_static_or_dynamic_key_is_the_columns_value(definition: dg.PartitionsDefinition[str]) -> None:
    assert partition_slice(SOURCE, definition, "de") == Partition(key="de", column="day", value="de")


def test_a_source_without_a_partition_column_cannot_be_sliced() -> None:
    with pytest.raises(ConfigError, match="has no partition_column"):
        partition_slice(DuckDBTable("a.duckdb", table="t"), dg.StaticPartitionsDefinition(["a"]), "a")

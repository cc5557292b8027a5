"""Dagster's partitions as slices of a source."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from fletcher_core.errors import ConfigError
from fletcher_core.sources import DuckDBTable, Partition
from fletcher_dagster import hash_partitions
from fletcher_dagster.partitions import dimension_tags, partition_slice, require_partitionable

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


DAYS = dg.DailyPartitionsDefinition("2026-01-01")
TENANTS = dg.StaticPartitionsDefinition(["a", "b"])
BY_ID = DuckDBTable("shop.duckdb", table="reviews")
DAY_AND_TENANT = DuckDBTable("shop.duckdb", table="reviews", partition_column={"day": "at", "tenant": "shop"})


def test_hash_buckets_are_counted_in_keys_of_one_width() -> None:
    keys = hash_partitions(64).get_partition_keys()
    assert (keys[0], keys[-1], len(keys)) == ("00", "63", 64)
    assert hash_partitions(10).get_partition_keys()[-1] == "9"
    assert list(hash_partitions(1).get_partition_keys()) == ["0"]
    assert partition_slice(BY_ID, hash_partitions(64), "07") == Partition("07", bucket=(7, 64))


@pytest.mark.parametrize("buckets", [0, -1, 100_001, True, "8"])
def test_a_number_of_buckets_that_cannot_work_is_refused(buckets: int) -> None:
    with pytest.raises(ConfigError, match="number of buckets must be from 1 to 100,000"):
        hash_partitions(buckets)


@pytest.mark.parametrize("key", ["64", "7", "x", "-1"])
def test_a_bucket_that_is_not_there_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"no partition '{key}': the hash buckets are '00' to '63'"):
        partition_slice(BY_ID, hash_partitions(64), key)


def test_two_dimensions_are_taken_in_their_alphabetical_order() -> None:
    """Whatever the order of declaration: Dagster sorts the dimensions of a key by name."""
    definition = dg.MultiPartitionsDefinition({"tenant": TENANTS, "day": DAYS})
    key = dg.MultiPartitionKey({"tenant": "b", "day": "2026-02-28"})
    slice_ = partition_slice(DAY_AND_TENANT, definition, key)
    assert slice_ == partition_slice(DAY_AND_TENANT, definition, "2026-02-28|b")
    day, tenant = slice_.parts
    assert (day.column, day.start) == ("at", datetime(2026, 2, 28, tzinfo=UTC))
    assert (tenant.column, tenant.value) == ("shop", "b")
    assert (slice_.key, type(slice_.key)) == ("2026-02-28|b", str)
    assert dimension_tags(definition, slice_.key) == {
        "dagster/partition/day": "2026-02-28",
        "dagster/partition/tenant": "b",
    }
    assert dimension_tags(TENANTS, "a") == {}


def test_a_dimension_of_hash_buckets_needs_no_column() -> None:
    source = DuckDBTable("shop.duckdb", table="reviews", partition_column={"day": "at"})
    definition = dg.MultiPartitionsDefinition({"day": DAYS, "bucket": hash_partitions(16)})
    bucket, day = partition_slice(source, definition, "03|2026-01-01").parts
    assert (bucket.column, bucket.bucket) == (None, (3, 16))
    assert day.column == "at"
    named = DuckDBTable("shop.duckdb", table="reviews", partition_column={"day": "at", "bucket": "customer"})
    assert partition_slice(named, definition, "03|2026-01-01").parts[0].column == "customer"


@pytest.mark.parametrize(
    ("column", "definition", "words"),
    [
        ({"day": "at"}, DAYS, "no MultiPartitionsDefinition.*partition_column='at'"),
        ({"day": "at"}, hash_partitions(2), "no MultiPartitionsDefinition"),
        (None, dg.MultiPartitionsDefinition({"day": DAYS, "tenant": TENANTS}), '"day": "<column>", "tenant": "<c'),
        ("at", dg.MultiPartitionsDefinition({"day": DAYS, "tenant": TENANTS}), "the one partition_column 'at'"),
        ("at", dg.MultiPartitionsDefinition({"day": DAYS, "b": hash_partitions(2)}), 'partition_column={"day": "<'),
        ({"day": "at"}, dg.MultiPartitionsDefinition({"day": DAYS, "tenant": TENANTS}), "the dimension 'tenant': add"),
        (
            {"day": "at", "tenant": "shop", "hour": "at"},
            dg.MultiPartitionsDefinition({"day": DAYS, "tenant": TENANTS}),
            "the dimension 'hour', which its partitions do not have: they have day, tenant",
        ),
    ],
)
def test_columns_that_do_not_fit_the_partitions_are_refused(
    column: str | dict[str, str] | None, definition: dg.PartitionsDefinition[str], words: str
) -> None:
    source = DuckDBTable("shop.duckdb", table="reviews", partition_column=column)
    with pytest.raises(ConfigError, match=f"source 'reviews'.*{words}"):
        require_partitionable(source, definition)


def test_a_key_of_one_dimension_too_few_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a' of source 'reviews' is no key of the form day\|tenant"):
        partition_slice(DAY_AND_TENANT, dg.MultiPartitionsDefinition({"day": DAYS, "tenant": TENANTS}), "a")

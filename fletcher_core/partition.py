"""Which slice of a source a run is about: all of it, one value of a column, a span of time, a share of all rows by
hash, or what several of these have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fletcher_core.errors import ConfigError
from fletcher_core.sql import identifier, literal


@dataclass(frozen=True)
class Partition:
    """A slice of a source: all of it, or the rows that meet one condition, or those that meet each of several.

    Args:
        key: the name of the slice in the vector store; '' when the source is not partitioned.
        column: the source's `partition_column` when not given; of a bucket, the source's `id_column` when it has none.
        value: compared with the column's text form.
        start, end: `start` <= column < `end`, compared with timestamps and dates. Without a time zone in the column the
            wall-clock time counts; with one, the instant (a naive bound is taken as UTC).
        bucket: (number, buckets): the rows for which the last eight bytes of MD5 of the column's text form, read as a
            little-endian number, leave `number` when divided by `buckets`. A null counts as an empty text, so that
            every row is in one bucket.
        parts: the rows that are in each of these slices; see `all_of`.

    Raises:
        ConfigError: more than one of value, time bounds, bucket and parts; a bucket that does not exist.
    """

    key: str = ""
    column: str | None = None
    value: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    bucket: tuple[int, int] | None = None
    parts: tuple["Partition", ...] = ()

    def __post_init__(self) -> None:
        bounded = self.start is not None or self.end is not None
        if self.value is not None and bounded:
            raise ConfigError(f"partition {self.key!r} has both a value and time bounds: give one of them")
        if (self.value is not None) + bounded + (self.bucket is not None) + bool(self.parts) > 1:
            raise ConfigError(
                f"partition {self.key!r} has several conditions: give one of value, time bounds, bucket and parts, "
                "and join more of them by Partition.all_of"
            )
        if self.bucket is not None and not 0 <= self.bucket[0] < self.bucket[1]:
            number, buckets = self.bucket
            raise ConfigError(f"partition {self.key!r}: there is no bucket {number} of {buckets}, they count from 0")

    @classmethod
    def all_of(cls, key: str, parts: Sequence["Partition"]) -> "Partition":
        """The rows that are in each of `parts`, whose own keys do not matter."""
        return cls(key, parts=tuple(parts))

    @property
    def filtered(self) -> bool:
        """Whether the slice is less than the whole source."""
        return bool(self.conditions)

    @property
    def conditions(self) -> tuple["Partition", ...]:
        """The slices of one condition each whose common rows this slice is; none when it is the whole source."""
        if self.parts:
            return tuple(condition for part in self.parts for condition in part.conditions)
        bounded = self.start is not None or self.end is not None
        return (self,) if self.value is not None or bounded or self.bucket is not None else ()

    def condition(self, column: str, type_: str) -> str:
        """A slice of one condition as SQL, on `column` of DuckDB's type `type_`."""
        return " AND ".join(" ".join(compared) for compared in self.compared(column, type_)) or "true"

    def compared(self, column: str, type_: str) -> list[tuple[str, str, str]]:
        """What `condition` is made of, as SQL: what is compared, how, and with what."""
        if self.parts:
            raise ConfigError(f"partition {self.key!r} has several conditions: ask each of its conditions for its SQL")
        text = f"CAST({identifier(column)} AS VARCHAR)"
        if self.value is not None:
            return [(text, "=", literal(self.value))]
        if self.bucket is not None:
            # Not DuckDB's own hash(), which may be another one in the next version.
            return [(f"md5_number_lower(coalesce({text}, '')) % {self.bucket[1]}", "=", str(self.bucket[0]))]
        zoned = type_ == "TIMESTAMP WITH TIME ZONE"
        moment = f"CAST({identifier(column)} AS {'TIMESTAMPTZ' if zoned else 'TIMESTAMP'})"
        bounds = ((">=", self.start), ("<", self.end))
        return [(moment, sign, _constant(at, zoned)) for sign, at in bounds if at is not None]


def _constant(at: datetime, zoned: bool) -> str:
    if not zoned:
        return f"TIMESTAMP {literal(at.replace(tzinfo=None).isoformat(sep=' '))}"
    instant = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    return f"TIMESTAMPTZ {literal(instant.isoformat(sep=' '))}"

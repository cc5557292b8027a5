"""Which slice of a source a run is about: all of it, one value of a column, or a span of time."""

from dataclasses import dataclass
from datetime import UTC, datetime

from fletcher_core.errors import ConfigError
from fletcher_core.sql import identifier, literal


@dataclass(frozen=True)
class Partition:
    """A slice of a source: all of it, the rows where `column` = `value`, or where `start` <= `column` < `end`.

    Args:
        key: the name of the slice in the vector store; '' when the source is not partitioned.
        column: the source's `partition_column` when not given.
        value: compared with the column's text form.
        start, end: compared with timestamps and dates. Without a time zone in the column the wall-clock time counts;
            with one, the instant (a naive bound is taken as UTC).
    """

    key: str = ""
    column: str | None = None
    value: str | None = None
    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        if self.value is not None and (self.start is not None or self.end is not None):
            raise ConfigError(f"partition {self.key!r} has both a value and time bounds: give one of them")

    @property
    def filtered(self) -> bool:
        """Whether the slice is less than the whole source."""
        return self.value is not None or self.start is not None or self.end is not None

    def condition(self, column: str, type_: str) -> str:
        """The slice as an SQL condition on `column` of DuckDB's type `type_`."""
        if self.value is not None:
            return f"CAST({identifier(column)} AS VARCHAR) = {literal(self.value)}"
        zoned = type_ == "TIMESTAMP WITH TIME ZONE"
        moment = f"CAST({identifier(column)} AS {'TIMESTAMPTZ' if zoned else 'TIMESTAMP'})"
        bounds = ((">=", self.start), ("<", self.end))
        return (
            " AND ".join(f"{moment} {sign} {_constant(at, zoned)}" for sign, at in bounds if at is not None) or "true"
        )


def _constant(at: datetime, zoned: bool) -> str:
    if not zoned:
        return f"TIMESTAMP {literal(at.replace(tzinfo=None).isoformat(sep=' '))}"
    instant = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    return f"TIMESTAMPTZ {literal(instant.isoformat(sep=' '))}"

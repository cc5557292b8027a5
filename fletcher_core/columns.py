"""Columns by name and type: which of DuckDB's types can be a text, what type metadata has in the store, near misses."""

import difflib
from collections.abc import Sequence

import pyarrow as pa

from fletcher_core.errors import SourceError

_WHOLE_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_TIMESTAMPS = ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS")
_STORED_TYPES: dict[str, tuple[str, pa.DataType]] = {
    "BOOLEAN": ("BOOLEAN", pa.bool_()),
    **dict.fromkeys(_WHOLE_NUMBERS, ("BIGINT", pa.int64())),
    "FLOAT": ("FLOAT", pa.float32()),
    "DOUBLE": ("DOUBLE", pa.float64()),
    "DATE": ("DATE", pa.date32()),
    **dict.fromkeys(_TIMESTAMPS, ("TIMESTAMP", pa.timestamp("us"))),
    "TIMESTAMP WITH TIME ZONE": ("TIMESTAMPTZ", pa.timestamp("us", tz="UTC")),
}


def stored_type(duckdb_type: str) -> tuple[str, pa.DataType]:
    """The SQL type a metadata column is cast to, and the Arrow type it has in the store.

    Few types, those that Longbow can filter by where there is a choice: whole numbers become 64 bits wide, decimals
    double precision, and whatever has no plain counterpart becomes text.
    """
    if duckdb_type.startswith("DECIMAL"):
        return "DOUBLE", pa.float64()
    return _STORED_TYPES.get(duckdb_type, ("VARCHAR", pa.string()))


def kept_type(type_: pa.DataType) -> str:
    """The SQL type a metadata column is cast to for the store that has it as `type_`."""
    return next((sql for sql, stored in _STORED_TYPES.values() if stored == type_), "VARCHAR")


def check_text_type(name: str, duckdb_type: str, origin: str) -> None:
    """Raises `SourceError` when the column cannot stand as a text; numbers and dates can, in their text form."""
    if duckdb_type == "BLOB":
        raise SourceError(
            f"text column {name!r} of {origin} holds bytes, not text: when they are UTF-8 say "
            f'query="SELECT * REPLACE (decode({name}) AS {name}) FROM ..."'
        )
    if duckdb_type.endswith("]") or duckdb_type.startswith(("STRUCT", "MAP", "UNION")):
        raise SourceError(
            f"text column {name!r} of {origin} is of type {duckdb_type}: make one text of it through query="
        )


def choices(wanted: str, names: Sequence[str], kind: str) -> str:
    """The end of a message on a name that does not exist: the nearest one, and all that do."""
    near = difflib.get_close_matches(wanted.lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    hint = next((f"did you mean {name!r}? " for name in names if near and name.lower() == near[0]), "")
    listed = ", ".join(names[:50]) + (", ..." if len(names) > 50 else "")
    return f"{hint}{'It' if hint else 'it'} has the {kind} {listed}" if names else f"it has no {kind} at all"

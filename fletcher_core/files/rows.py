"""What is read to be embedded: windows of rows, each with its columns to keep and its texts, whatever they come from.

Rows are read a window at a time and in the order of the source, so memory is bounded by the window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from fletcher_core.errors import ConfigError
from fletcher_core.template import parse_template

ID, VECTOR = "id", "vector"
"""Columns of what comes out."""
DEFAULT_TEXT = "text"


@dataclass(frozen=True)
class Selection:
    """Which columns of a source count.

    Args:
        text_columns: what is embedded; one name or several. Empty takes the column `text`.
        id_column: names a row in the output. None takes the column `id` where there is one, else the number of the row,
            from 0.
        keep: columns to carry over.
        template: how several text columns become one text; without it an empty line joins those that are not null.

    Raises:
        ConfigError: a column to keep has the name of one that is made here; a faulty template.
    """

    text_columns: tuple[str, ...] = ()
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    template: str | None = None

    def __post_init__(self) -> None:
        if not self.text_columns:
            object.__setattr__(self, "text_columns", (DEFAULT_TEXT,))
        for name in self.keep:
            if name.lower() in (ID, VECTOR):
                raise ConfigError(f"keep: {name!r} is the name of a column that the output has anyway; leave it out")
        if len(set(self.keep)) < len(self.keep):
            raise ConfigError(f"keep: a column is named twice in {', '.join(self.keep)}")
        if self.template is not None:
            parse_template(self.template, self.text_columns)

    def id_among(self, names: list[str]) -> str | None:
        """The column that identifies a row, of a source with these columns; None for the row's number."""
        if self.id_column is not None:
            return self.id_column
        return next((name for name in names if name.lower() == ID), None)

    @property
    def wanted(self) -> tuple[str, ...]:
        """All columns that are named, each once."""
        names = (*([self.id_column] if self.id_column else []), *self.text_columns, *self.keep)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class RowWindow:
    """Some rows: `columns` (`id`, then those to keep) and `texts`, an Arrow array of strings or of bytes."""

    columns: pa.Table
    texts: "pa.Array | pa.ChunkedArray"


class Rows(Protocol):
    """A source that is open. `schema` is that of the columns; `total` its rows, None where that is not known;
    `numbered` says that its rows have no ids but their numbers."""

    schema: pa.Schema
    total: int | None
    numbered: bool

    def windows(self) -> Iterator[RowWindow]:
        """The rows, once.

        Raises:
            SourceError: the source cannot be read.
        """
        ...

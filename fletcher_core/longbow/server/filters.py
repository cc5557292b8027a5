"""Row filters of scan tickets and searches, with Longbow's rules for values that do not fit a column."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_COMPARISONS = {
    **dict.fromkeys(("=", "==", "eq"), pc.equal),
    **dict.fromkeys(("!=", "neq"), pc.not_equal),
    **dict.fromkeys((">", "gt"), pc.greater),
    **dict.fromkeys(("<", "lt"), pc.less),
    **dict.fromkeys((">=", "ge"), pc.greater_equal),
    **dict.fromkeys(("<=", "le"), pc.less_equal),
}
_PARSERS = {pa.string(): str, pa.int64(): int, pa.float32(): float, pa.float64(): float}


@dataclass(frozen=True)
class Filter:
    """`field operator value`; the value travels as a string and is read as the column's type."""

    field: str
    operator: str
    value: str


class UnusableFilterError(ValueError):
    """No filter fits the columns: a scan answers no rows, a search fails."""


def row_mask(table: pa.Table, filters: Sequence[Filter]) -> npt.NDArray[np.bool_]:
    """Which rows pass every filter that fits a column, bool [rows]; null never passes; [rows] of True without filters.

    Raises UnusableFilterError when no filter fits, or a value cannot be read as its column's type.
    An unknown operator passes nothing. An unknown column beside a known one is ignored.
    """
    if not filters:
        return np.ones(table.num_rows, dtype=np.bool_)
    fitting = [f for f in filters if f.field in table.column_names]
    if not fitting:
        raise UnusableFilterError(f"no column named {', '.join(f.field for f in filters)}")
    return functools.reduce(np.logical_and, (_passes(table[f.field], f) for f in fitting))


def _passes(column: pa.ChunkedArray, condition: Filter) -> npt.NDArray[np.bool_]:
    parse = _PARSERS.get(column.type)
    if parse is None:
        raise UnusableFilterError(f"column {condition.field} of type {column.type} cannot be filtered")
    try:
        value = pa.scalar(parse(condition.value), type=column.type)
    except (ValueError, OverflowError, pa.ArrowInvalid) as error:
        raise UnusableFilterError(f"{condition.value!r} is no {column.type}") from error
    compare = _COMPARISONS.get(condition.operator)
    if compare is None:
        return np.zeros(len(column), dtype=np.bool_)
    passed = pc.fill_null(compare(column, value), False)
    return np.asarray(passed.to_numpy(), dtype=np.bool_)

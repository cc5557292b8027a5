"""Row filters of scan tickets and searches, with Longbow's rules for values that do not fit a column."""

import functools
from collections.abc import Callable, Sequence
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
# By operator, whether a value keeps out all of a text column's values from the first to the last of them.
_KEEPS_OUT: dict[str, Callable[[str, str, str], bool]] = {
    **dict.fromkeys(("=", "==", "eq"), lambda value, first, last: not first <= value <= last),
    **dict.fromkeys((">", "gt"), lambda value, first, last: last <= value),
    **dict.fromkeys(("<", "lt"), lambda value, first, last: value <= first),
    **dict.fromkeys((">=", "ge"), lambda value, first, last: last < value),
    **dict.fromkeys(("<=", "le"), lambda value, first, last: value < first),
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


def may_pass(text_range: Callable[[str], tuple[str, str] | None], filters: Sequence[Filter]) -> bool:
    """Whether any row may pass, as far as the first and last values of text columns tell, which `text_range` has."""
    for condition in filters:
        keeps_out, values = _KEEPS_OUT.get(condition.operator), text_range(condition.field)
        if keeps_out is not None and values is not None and keeps_out(condition.value, *values):
            return False
    return True


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

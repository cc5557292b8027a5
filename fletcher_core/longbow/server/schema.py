"""How the embedded server compares and joins schemas: a dataset's columns only grow, their types never change."""

import pyarrow as pa


def check_columns(schema: pa.Schema) -> None:
    """Raises ArrowInvalid for columns that no dataset can hold: two of one name, or lists of size 0, by which parts
    of Arrow divide (`FixedSizeListArray.from_arrays` then ends the process)."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise pa.ArrowInvalid(f"schema mismatch: two columns are named {twice[0][:100]!r}")
    for column in schema:
        if _holds_empty_lists(column.type):
            raise pa.ArrowInvalid(f"schema mismatch: column {column.name[:100]!r} is of lists of no elements")


def _holds_empty_lists(kind: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(kind) and kind.list_size == 0:
        return True
    if pa.types.is_dictionary(kind):
        return _holds_empty_lists(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_empty_lists(kind.storage_type)
    return any(_holds_empty_lists(kind.field(place).type) for place in range(kind.num_fields))


def union(known: pa.Schema, incoming: pa.Schema) -> pa.Schema:
    """`known` plus the new columns of `incoming`. Raises ArrowInvalid when a column comes with another type."""
    for column in incoming:
        place = known.get_field_index(column.name)
        if place == -1:
            known = known.append(column.with_nullable(True))
        elif not same_type(known.field(place).type, column.type):
            raise pa.ArrowInvalid(
                f"schema mismatch: column {column.name!r} is {known.field(place).type}, the put brings {column.type}"
            )
    return known


def same_type(left: pa.DataType, right: pa.DataType) -> bool:
    """Equal but for the name of a list's child; the child's nullability counts."""
    for is_list in (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list):
        if is_list(left) and is_list(right):
            equal_size = not pa.types.is_fixed_size_list(left) or left.list_size == right.list_size
            equal_item = left.value_field.nullable == right.value_field.nullable
            return equal_size and equal_item and same_type(left.value_type, right.value_type)
    return bool(left.equals(right))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns, missing ones null; equal types make this free of copies."""
    columns = [
        table[column.name].cast(column.type)
        if column.name in table.column_names
        else pa.nulls(table.num_rows, column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)

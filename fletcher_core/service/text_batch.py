"""What a Flight call asks for, and whether its columns can give it.

In: the descriptor's command and the stream's schema. Out: which column holds the texts and what goes where, or
ArrowInvalid (INVALID_ARGUMENT) with the columns that there are.
"""

from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from fletcher_core.longbow.server.limits import Limits
from fletcher_core.tokenizers.request import surrogate_reason

MAX_COMMAND_BYTES = 64 * 1024
_LIMITS = Limits(columns=1_000, json_depth=4)
_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_AS_BYTES = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


@dataclass(frozen=True)
class TextRequest:
    """The options of a call, as they stand in its command: a JSON object with some of these names."""

    column: str = "text"
    """Holds the texts: strings, a dictionary of strings, or UTF-8 bytes."""
    output: str = "vector"
    """The name of the vectors' column."""
    query: bool = False
    """Embed with the model's prompt for queries instead of that for documents."""
    dimension: int | None = None
    """Keep only so many of the first elements of each vector (Matryoshka models); None keeps all."""

    @classmethod
    def parse(cls, command: bytes, model_dimension: int) -> "TextRequest":
        """Raises ArrowInvalid for a command that is no such object, or that the model cannot follow."""
        return cls.of(parse_command(command), model_dimension)

    @classmethod
    def of(cls, options: dict[str, Any], model_dimension: int) -> "TextRequest":
        """The same from a JSON object that is parsed already."""
        refuse_unknown(options, [field.name for field in fields(cls)])
        request = cls(**options)
        for name, value in (("column", request.column), ("output", request.output)):
            if not isinstance(value, str) or not 0 < len(value) <= _LIMITS.name_bytes or surrogate_reason(value):
                raise pa.ArrowInvalid(f"{name} is {_shown(value)}: give the name of a column")
        if not isinstance(request.query, bool):
            raise pa.ArrowInvalid(f"query is {_shown(request.query)}: give true or false")
        size = request.dimension
        if size is not None and (type(size) is not int or not 1 <= size <= model_dimension):
            raise pa.ArrowInvalid(
                f"dimension is {_shown(size)}: give a whole number from 1 to {model_dimension}, the model's own"
            )
        return request

    def check_schema(self, schema: pa.Schema) -> None:
        """Raises ArrowInvalid where a batch of this schema has no texts, or has a column of the output's name."""
        _LIMITS.check_schema(schema)
        check_column(schema, self.column)
        kind = schema.field(self.column).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(check(plain) for check in (*_STRINGS, *_BYTES)):
            raise pa.ArrowInvalid(
                f"column {self.column!r} is of {kind}, not of strings: name the column of the texts in the command, "
                f'as in {{"column": "text"}}, or cast it. {columns_in_words(schema)}'
            )
        if self.output in schema.names:
            raise pa.ArrowInvalid(
                f"there is a column {self.output!r} already: choose another name for the vectors in the command, as in "
                '{"output": "vector"}, or leave the column out'
            )


def parse_command(command: bytes) -> dict[str, Any]:
    """The JSON object in a command; none is an empty one. Raises ArrowInvalid for anything else."""
    if not command.strip():
        return {}
    options = _LIMITS.parse_json(command, "command", MAX_COMMAND_BYTES)
    if not isinstance(options, dict):
        raise pa.ArrowInvalid('the command is no JSON object: write it as in {"column": "text"}')
    return options


def refuse_unknown(options: dict[str, Any], known: list[str]) -> None:
    """Raises ArrowInvalid for an option that does not exist: a slip of the pen must not change what is computed."""
    if unknown := sorted(options.keys() - known):
        raise pa.ArrowInvalid(f"the command has {_shown(unknown[0])}, which is none of {', '.join(known)}")


def check_column(schema: pa.Schema, name: str) -> None:
    """Raises ArrowInvalid unless there is exactly one column of this name."""
    count = schema.names.count(name)
    if count != 1:
        problem = "no column" if not count else f"{count} columns of the name"
        raise pa.ArrowInvalid(
            f"there is {problem} {name!r}: name the column of the texts in the command, as in "
            f'{{"column": "text"}}. {columns_in_words(schema)}'
        )


def columns_in_words(schema: pa.Schema) -> str:
    """ "The batches have a (int64), b (string)"; the first twenty where there are more."""
    named = ", ".join(f"{field.name!r} ({str(field.type)[:60]})" for field in list(schema)[:20])
    more = f" and {len(schema) - 20} more" if len(schema) > 20 else ""
    return f"The batches have {named}{more}" if named else "The batches have no columns at all"


def checked_texts(batch: pa.RecordBatch, column: str) -> pa.Array:
    """The texts of a batch from the network as an array of bytes, which may be no UTF-8: one bad text is not the
    whole batch's fault.

    Raises ArrowInvalid where any column's buffers are not what its type says: reading them could end the process.
    """
    place = batch.schema.names.index(column)
    try:
        for number, array in enumerate(batch.columns):
            if number != place:
                array.validate(full=True)
        return _bytes_of(batch.column(place))
    except pa.ArrowException as error:
        raise pa.ArrowInvalid(f"the rows are damaged: {str(error)[:300]}") from error


def _bytes_of(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.DictionaryArray):
        array.indices.validate(full=True)
        values = _bytes_of(array.dictionary)
        if values.type == pa.binary_view():  # which Arrow cannot take from
            values = values.cast(pa.large_binary())
        pa.DictionaryArray.from_arrays(array.indices, values, safe=True)  # no index points beyond them
        return values.take(array.indices)
    kind = _AS_BYTES.get(array.type, array.type)
    array.validate()
    texts = pa.Array.from_buffers(kind, len(array), array.buffers(), array.null_count, array.offset)
    texts.validate(full=True)
    return texts


def _shown(value: object) -> str:
    return repr(value)[:80]

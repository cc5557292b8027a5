"""Embedded batches in, rows in Longbow out: a gateway that keeps nothing.

A batch is acknowledged when Longbow has taken it, never before. Longbow takes a row by queueing it, and has no upsert:
a row that is sent again is there twice. So after an outcome that is not known (the call failed, or its connection) a
client first reads back which ids the dataset holds, and sends only the others. Who wants that done for him, with rows
that change and outages, uses Fletcher's pipeline, which has a store.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.errors import FletcherError, LongbowError
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.server.limits import Limits
from fletcher_core.longbow.wire import split_table
from fletcher_core.service.read_ahead import EmbeddedBatch, ReadAhead
from fletcher_core.service.text_batch import (
    TextRequest,
    check_column,
    columns_in_words,
    parse_command,
    refuse_unknown,
)
from fletcher_core.tokenizers.request import surrogate_reason

VECTOR, ID = "vector", "id"
"""The two columns that mean something to Longbow."""
OPTIONS = b"fletcher"
"""The key of a stream's schema metadata that holds the options of a put whose descriptor is a path."""
_IDS = 2**32
_LIMITS = Limits()


@dataclass(frozen=True)
class PutRequest:
    """Where rows go, and what is embedded of them. The text goes along with the row unless `keep_text` is false."""

    dataset: str
    texts: TextRequest
    keep_text: bool = True

    @classmethod
    def parse(cls, descriptor: flight.FlightDescriptor, schema: pa.Schema, model_dimension: int) -> "PutRequest":
        """From a path [dataset], with options as JSON in the schema's metadata under `fletcher`; or from a command
        that has "dataset" among its options. Raises ArrowInvalid for any other."""
        if descriptor.path:
            if len(descriptor.path) != 1:
                raise pa.ArrowInvalid(f"the path has {len(descriptor.path)} elements: give one, the dataset")
            options = parse_command((schema.metadata or {}).get(OPTIONS, b""))
            dataset: Any = _LIMITS.dataset_of(descriptor.path)
        else:
            options = parse_command(descriptor.command or b"")
            dataset = options.pop("dataset", "")
        refuse_unknown(options, ["column", "query", "dimension", "keep_text"])
        if not isinstance(dataset, str) or not dataset or surrogate_reason(dataset):
            raise pa.ArrowInvalid("a put needs the name of a dataset: give a path descriptor of one element")
        _LIMITS.check_name(dataset, "a dataset")
        keep_text = options.pop("keep_text", True)
        if not isinstance(keep_text, bool):
            raise pa.ArrowInvalid(f"keep_text is {keep_text!r:.80}: give true or false")
        request = cls(dataset, TextRequest.of(options | {"output": VECTOR}, model_dimension), keep_text)
        request._check_schema(schema)
        return request

    def _check_schema(self, schema: pa.Schema) -> None:
        if ID not in schema.names:
            raise pa.ArrowInvalid(
                f"there is no column {ID!r}: a put needs one of whole numbers from 0 to {_IDS - 1}, which Longbow "
                f"knows a row by. {columns_in_words(schema)}"
            )
        check_column(schema, ID)
        if not pa.types.is_integer(schema.field(ID).type):
            raise pa.ArrowInvalid(
                f"column {ID!r} is of {schema.field(ID).type}: Longbow needs uint64, whole numbers from 0 to "
                f"{_IDS - 1}; keep keys of another kind in a column of another name"
            )
        self.texts.check_schema(schema)


class Gateway:
    """One put: takes its batches to a dataset.

    Args:
        client: of the Longbow server.
        request: of the call.

    Attributes: `forwarded`, the rows that Longbow took so far.
    """

    def __init__(self, client: LongbowClient, request: PutRequest):
        self._client = client
        self._request = request
        self.forwarded = 0

    def run(self, batches: ReadAhead, writer: flight.FlightMetadataWriter) -> None:
        """Forward the batches, each acknowledged by `{"rows": n, "forwarded": m, "errors": [{"row", "id", "reason"}]}`.

        After a failure the message of a batch that was not (wholly) forwarded has it under "failed" too.

        Raises:
            FletcherError: what ended the put, with the number of rows that were forwarded before it.
        """
        try:
            for each in batches:
                rows, errors = self._rows(each)
                before, failure = self.forwarded, each.failure
                if failure is None:
                    try:
                        self._put(rows)
                    except LongbowError as error:
                        failure = error
                        batches.fail(error)
                answer = {"rows": each.batch.num_rows, "forwarded": self.forwarded - before, "errors": errors}
                if failure is not None:
                    answer["failed"] = str(failure)
                writer.write(json.dumps(answer).encode())
        except FletcherError as error:
            words = f"{error}. Longbow took {self.forwarded} rows of this put before"
            error.args = (words, *error.args[1:])
            raise

    def _put(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        settings = self._client.settings
        for piece in split_table(rows, max_rows=settings.max_put_rows, max_bytes=settings.max_put_bytes):
            self._client.put(self._request.dataset, piece)
            self.forwarded += piece.num_rows

    def _rows(self, each: EmbeddedBatch) -> tuple[pa.Table, list[dict[str, Any]]]:
        """What Longbow is to get, and what is wrong with the other rows."""
        batch, reasons = each.batch, dict(each.column.reasons) if each.failure is None else {}
        wide = batch.column(batch.schema.names.index(ID)).cast(pa.int64(), safe=False)  # above 2**63 becomes below 0
        ids = np.asarray(wide.fill_null(-1))
        unfit = (ids < 0) | (ids >= _IDS)
        if each.failure is None:
            given = batch.column(batch.schema.names.index(ID))
            for row in np.flatnonzero(np.asarray(each.texts.is_null().to_numpy(zero_copy_only=False))).tolist():
                reasons[row] = "the text is null: there is no vector to search for"
            for row in np.flatnonzero(unfit).tolist():
                value = given[row].as_py()
                reasons[row] = f"the id is {'null' if value is None else value}, not from 0 to {_IDS - 1}"
        errors = [
            {"row": row, "id": None if unfit[row] else int(ids[row]), "reason": reasons[row]} for row in sorted(reasons)
        ]
        good = np.ones(len(ids), bool)
        good[list(reasons)] = False
        return self._table(each, ids, good), errors

    def _table(self, each: EmbeddedBatch, ids: npt.NDArray[np.int64], good: npt.NDArray[np.bool_]) -> pa.Table:
        columns: dict[str, pa.Array] = {ID: pa.array(ids).cast(pa.uint64(), safe=False), VECTOR: each.column.vectors}
        for field, array in zip(each.batch.schema, each.batch.columns, strict=True):
            if field.name == self._request.texts.column:
                if self._request.keep_text:
                    columns[field.name] = _plain(each.texts)
            elif field.name != ID:
                columns[field.name] = _plain(array)
        if not good.all():
            mask = pa.array(good)
            columns = {name: array.filter(mask) for name, array in columns.items()}
        text = self._request.texts.column
        if text in columns:  # the bad ones are gone: the others are UTF-8
            columns[text] = columns[text].cast(pa.string())
        return pa.table(columns)


def _plain(array: pa.Array) -> pa.Array:
    """Dictionaries as their values and views as ordinary strings or bytes: every version of Longbow can keep those."""
    if isinstance(array, pa.DictionaryArray):
        return _plain(array.dictionary_decode())
    if array.type == pa.string_view():
        return array.cast(pa.string())
    return array.cast(pa.binary()) if array.type == pa.binary_view() else array

"""Calls to a Longbow server: Arrow tables and vectors in, read-backs and hits out, every failure a LongbowError.

A put is one short stream under Longbow's flush limits, so that it lands whole or not at all; nothing that Longbow
acknowledges is taken as stored, which is why reading back has its own calls.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.errors import ConfigError, LongbowNotFound, LongbowRejected
from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.breaker import BreakerSettings, CircuitBreaker, Proof, breaker_of
from fletcher_core.longbow.calls import longbow_call
from fletcher_core.longbow.credentials import Credentials
from fletcher_core.longbow.flight_spans import flight_span, trace_headers
from fletcher_core.longbow.handshake import explain_refusals
from fletcher_core.longbow.transport import (
    SEARCHED_BY_EVERY_SERVER,
    check_settings,
    write_options,
)
from fletcher_core.setting_values import Compression, Transport
from fletcher_core.telemetry.metrics import LONGBOW_BYTES

FLUSH_ROWS = 50_000
FLUSH_BYTES = 32 * 2**20
MAX_ANSWER_BYTES = 512 * 2**20
"""Longest message that a server may send us, which is also the longest that Longbow sends."""
_SENT, _RECEIVED = LONGBOW_BYTES.labels("sent"), LONGBOW_BYTES.labels("received")
_MAX_RESULTS = 16  # of an action of which no number is expected

# Reconnect soon after an outage, on connections of our own: gRPC else shares a connection and its backoff of up to
# two minutes between clients. Straight to the server, past any http_proxy of the environment, which is for the web.
# No keepalive: Longbow hangs up on clients that ping oftener than every five minutes.
_CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in truth the time that one attempt may take
    ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass(frozen=True)
class LongbowSettings:
    """Where the server listens, how long to wait for it (timeouts in seconds, one a call), and how rows travel."""

    data: str = "127.0.0.1:3000"
    meta: str = ""
    call_timeout: float = 5.0
    put_timeout: float = 30.0
    read_timeout: float = 60.0
    max_put_rows: int = FLUSH_ROWS - 1
    max_put_bytes: int = FLUSH_BYTES - 1
    max_read_bytes: int = 4 * 2**30
    """Of one scan's or search's answer, which is held in memory: a server that sends more is hung up on."""
    transport: Transport = "fp32"
    """Element type of the vectors that a sender puts; 'fp16' needs a server that says it can search float16."""
    compression: Compression | None = None
    """Of the buffers of a put: worth its time on a slow network, not on a fast one, as vectors hardly compress."""
    streams: int = 3
    """Segments that a sender has on their way at once: one is read and another read back while a third is put."""
    credentials: Credentials = field(default_factory=Credentials)
    """TLS files and token, for a server that asks for them."""
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    """When to stop trying a server that fails; of all clients of one server, those of the first count."""

    def __post_init__(self) -> None:
        for name in ("call_timeout", "put_timeout", "read_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Longbow {name}: {getattr(self, name)} is not above 0 seconds")
        for name, limit in (("max_put_rows", FLUSH_ROWS), ("max_put_bytes", FLUSH_BYTES)):
            if not 0 < getattr(self, name) < limit:
                raise ConfigError(
                    f"Longbow {name}: {getattr(self, name)} is not between 1 and {limit - 1}; "
                    "a larger put may land in part"
                )
        if self.max_read_bytes < 1:
            raise ConfigError(f"Longbow max_read_bytes: {self.max_read_bytes} is below 1; nothing could be read")
        if self.streams < 1:
            raise ConfigError(f"Longbow streams: {self.streams} is below 1; 1 puts one segment after the other")
        check_settings(self.transport, self.compression)
        self.credentials.check(self.address)

    @property
    def address(self) -> LongbowAddress:
        """Both ports, each spelled in one way."""
        return LongbowAddress(self.data, self.meta)


@dataclass(frozen=True)
class Readiness:
    """The server's word on itself or on one dataset. READY does not mean indexed: compare `index_len`.

    The rest are additions of the embedded server, of which today's Longbow says nothing: `vector_types`, the element
    types that it can search; `vector_type`, the dataset's own; `scan_columns`, whether `scan` may name columns.
    """

    status: Literal["READY", "BUSY", "NOT_FOUND"]
    reason: str = ""
    index_len: int | None = None
    vector_types: tuple[str, ...] = SEARCHED_BY_EVERY_SERVER
    vector_type: str = ""
    scan_columns: bool = False


@dataclass(frozen=True)
class PutResult:
    """What went out in a put that the server closed with OK. `slow_down`: it asks to pause before the next."""

    rows: int
    bytes: int
    slow_down: bool


class LongbowClient:
    """A connection to both ports of one server. Opens lazily, reconnects by itself, may be shared by threads.

    Calls to the data port go through the circuit breaker that the process has for it, or the one given: once the server
    is known to be down they raise LongbowUnavailable at once.

    Raises ConfigError when a TLS file or the token cannot be read.
    """

    def __init__(self, settings: LongbowSettings | None = None, *, breaker: CircuitBreaker | None = None) -> None:
        self.settings = settings or LongbowSettings()
        self.address = self.settings.address
        self.settings.credentials.headers()  # a missing token is better known now than in the middle of a run
        self.breaker = breaker or breaker_of(self.address.data, self.settings.breaker)
        self._data = _connect(self.address.data, self.settings.credentials)
        self._meta = _connect(self.address.meta, self.settings.credentials)

    def close(self) -> None:
        self._data.close()
        self._meta.close()

    def __enter__(self) -> "LongbowClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def readiness(self, dataset: str | None = None) -> Readiness:
        """Whether the server, or a dataset on it, has indexed what it was given.

        Raises LongbowUnavailable when it does not answer, LongbowRejected when it speaks the protocol before v0.1.2.
        """
        body = {} if dataset is None else {"dataset": dataset}
        timeout = self.settings.call_timeout
        (answer,) = self._action("check_readiness", body, timeout, expected=1, proof=Proof.IS_ALIVE)
        with longbow_call(self.address.data, "check_readiness"):
            return _readiness(_parse_object(answer))

    def put(self, dataset: str, table: pa.Table) -> PutResult:
        """Send the rows as one stream; returns after the server closed it with OK, which means 'queued', not 'stored'.

        Vectors go as they are in the table (a sender makes it in the transport's type), the buffers without a copy
        unless the settings say to compress them.

        Raises LongbowRejected for a table over max_put_rows or max_put_bytes and for a schema that the dataset does
        not have, LongbowUnavailable when the outcome is unknown: read back before sending again.
        """
        size = table.nbytes
        call = f"put of {table.num_rows} rows to dataset {dataset!r}"
        if table.num_rows > self.settings.max_put_rows or size > self.settings.max_put_bytes:
            raise LongbowRejected(
                f"Longbow at {self.address.data}, {call}: {table.num_rows} rows of {size} bytes are over the limit of "
                f"{self.settings.max_put_rows} rows or {self.settings.max_put_bytes} bytes a put; split the table"
            )
        descriptor = flight.FlightDescriptor.for_path(dataset)
        timeout = self.breaker.deadline(self.settings.call_timeout, self.settings.put_timeout)
        with (
            flight_span("DoPut", self.address.data, dataset, rows=table.num_rows, bytes=size),
            self._call(self.address.data, call, self.breaker, Proof.TAKES_ROWS),
        ):
            options = self._options(timeout, write_options(self.settings.compression))
            writer, reader = self._data.do_put(descriptor, table.schema, options)
            try:
                writer.write_table(table)
                writer.done_writing()
                slow_down = _asks_to_slow_down(reader)
            except BaseException:
                _close_quietly(writer)
                raise
            writer.close()
        _SENT.inc(size)
        return PutResult(table.num_rows, size, slow_down)

    def scan(
        self,
        dataset: str,
        filters: Sequence[tuple[str, str, object]] = (),
        *,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows that pass every (column, operator, value); a table without columns when the dataset was never put to.

        Deleted rows are hidden without filters only; older versions of a row come along. Take columns by name. To ask
        for some `columns` only, the server must say so (`Readiness.scan_columns`): Longbow v0.1.2 refuses the ticket.
        """
        with self._scanning(dataset, filters, columns) as rows:
            return pa.table({}) if rows is None else _read_all(rows, self.settings.max_read_bytes)

    def present_ids(
        self, dataset: str, segment: str, last: str = "", *, ids_only: bool = False
    ) -> npt.NDArray[np.uint64]:
        """Ids of the rows of a segment that the server holds, a copy each: uint64 [rows], empty for a new dataset.

        With `last`, of all segments whose labels are from `segment` to it. `ids_only` asks for nothing but ids, of a
        server that can do so; else whole rows travel back.
        """
        filters = [("segment", ">=", segment), ("segment", "<=", last)] if last else [("segment", "=", segment)]
        try:
            table = self.scan(dataset, filters, columns=["id"] if ids_only else None)
        except LongbowNotFound:
            return np.empty(0, dtype=np.uint64)
        if "id" not in table.column_names:
            return np.empty(0, dtype=np.uint64)
        with longbow_call(self.address.data, f"scan of dataset {dataset!r}"):
            return _ids(table["id"])

    def labelled_ids(
        self, dataset: str, filters: Sequence[tuple[str, str, object]], *, ids_only: bool = False
    ) -> pa.Table:
        """Columns `id` uint64 and `segment` (a dictionary) of every row that passes the filters, a copy each.

        With any filter, deleted rows are among them. Holds no more than that in memory, and it is what max_read_bytes
        bounds, however much travels: without `ids_only` that is whole rows.
        """
        columns = ["id", "segment"]
        kinds = pa.schema([("id", pa.uint64()), ("segment", pa.dictionary(pa.int32(), pa.string()))])
        parts, size, most = [kinds.empty_table()], 0, self.settings.max_read_bytes
        with (
            contextlib.suppress(LongbowNotFound),
            self._scanning(dataset, filters, columns if ids_only else None) as rows,
        ):
            for batch in () if rows is None else _checked(rows):
                if {*columns} <= {*batch.schema.names}:
                    ids = np.array(_ids(batch["id"]))  # a copy: a slice would keep the whole message in memory
                    labels = batch["segment"].cast(pa.string()).dictionary_encode()
                    if labels.null_count:
                        raise pa.ArrowInvalid("column segment has nulls: these are not Fletcher's rows")
                    parts.append(pa.Table.from_arrays([pa.array(ids), labels], schema=kinds))
                    size += parts[-1].nbytes
                size += 1024  # a batch without these columns must end some time, too
                if rows is not None and size > most:
                    rows.cancel()
                    raise pa.ArrowInvalid(_too_much(most))
        return pa.concat_tables(parts).unify_dictionaries().combine_chunks()

    def search(
        self, dataset: str, vectors: npt.NDArray[np.float32] | Sequence[Sequence[float]], k: int
    ) -> list[pa.Table]:
        """The k nearest rows to each of the vectors [n, dim]: a table (id uint64, score float32) each, best first.

        score = 1 / (1 + Euclidean distance). Deleted and superseded rows are among the hits. Raises LongbowNotFound
        for an unknown dataset, LongbowRejected for a wrong dimension, LongbowUnavailable where nothing is indexed yet.
        """
        queries = np.asarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or not np.isfinite(queries).all():
            raise LongbowRejected(
                f"search of dataset {dataset!r}: the query vectors are no finite [n, dimension] array but have "
                f"shape {queries.shape}; embed the query text again"
            )
        request = {"dataset": dataset, "vectors": queries.tolist(), "k": int(k)}
        with flight_span("VectorSearch", self.address.data, dataset, queries=len(queries), k=int(k)):
            answers = self._action("VectorSearch", request, self.settings.read_timeout, expected=len(queries))
        _RECEIVED.inc(sum(answer.size for answer in answers))
        with self._call(self.address.data, f"VectorSearch in dataset {dataset!r}"):
            return [_read_hits(answer) for answer in answers]

    def delete(self, dataset: str, row: int) -> None:
        """Hide the newest copy of a row from unfiltered scans; searches still find it. Raises LongbowNotFound."""
        self._action("delete", {"dataset": dataset, "id": str(row)}, self.settings.call_timeout)

    def delete_dataset(self, dataset: str) -> None:
        """Drop a dataset; a real server brings it back when it starts again. Raises LongbowNotFound."""
        self._action("delete-dataset", {"dataset": dataset}, self.settings.call_timeout)

    def list_datasets(self) -> list[str]:
        """Names of all datasets, from the meta port."""
        options = self._options(self.settings.call_timeout)
        with self._call(self.address.meta, "list of datasets"):
            paths = [info.descriptor.path for info in self._meta.list_flights(options=options)]
            if not all(paths):
                raise pa.ArrowInvalid("a flight has no path")
            return [path[0].decode(errors="replace") for path in paths]

    def _options(self, timeout: float, write: pa.ipc.IpcWriteOptions | None = None) -> flight.FlightCallOptions:
        """Of one call: its deadline in seconds, the token as it is now, and the span that it belongs to."""
        headers = [*self.settings.credentials.headers(), *trace_headers()]
        return flight.FlightCallOptions(timeout=timeout, write_options=write, headers=headers or None)

    @contextlib.contextmanager
    def _call(
        self, address: str, call: str, breaker: CircuitBreaker | None = None, proof: Proof = Proof.ANSWERS
    ) -> Iterator[None]:
        """Failures as LongbowErrors, those of a handshake with the setting that is to be corrected."""
        with longbow_call(address, call, breaker, proof), explain_refusals(address, call, self.settings.credentials):
            yield

    @contextlib.contextmanager
    def _scanning(
        self, dataset: str, filters: Sequence[tuple[str, str, object]], columns: Sequence[str] | None
    ) -> Iterator[flight.FlightStreamReader | None]:
        """The answer to a scan, read in a `with` block; None when Longbow has no rows to send."""
        conditions = [{"field": f, "operator": o, "value": str(v)} for f, o, v in filters]
        request: dict[str, Any] = {"name": dataset, "filters": conditions}
        if columns is not None:
            request["columns"] = list(columns)
        ticket = flight.Ticket(json.dumps(request).encode())
        with (
            flight_span("DoGet", self.address.data, dataset),
            self._call(self.address.data, f"scan of dataset {dataset!r}", self.breaker),
        ):
            options = self._options(self.settings.read_timeout)
            try:
                rows = self._data.do_get(ticket, options)
            except flight.FlightInternalError as error:
                if "never sent a data message" not in str(error):  # Longbow's way to say: no rows
                    raise
                rows = None
            yield rows

    def _action(
        self,
        name: str,
        body: Mapping[str, Any],
        timeout: float,
        *,
        expected: int | None = None,
        proof: Proof = Proof.ANSWERS,
    ) -> list[pa.Buffer]:
        """The result bodies of an action on the data port; `expected` of them, where given."""
        where = f"{name} of dataset {body['dataset']!r}" if "dataset" in body else name
        options = self._options(timeout)
        with self._call(self.address.data, where, self.breaker, proof):
            results = self._data.do_action((name, json.dumps(body).encode()), options)
            bodies: list[pa.Buffer] = []
            most, size = _MAX_RESULTS if expected is None else expected, 0
            for result in results:
                bodies.append(result.body)
                size += result.body.size
                if len(bodies) > most or size > self.settings.max_read_bytes:
                    break  # it might never end
        if size > self.settings.max_read_bytes:
            raise LongbowRejected(f"Longbow at {self.address.data}, {where}: {_too_much(self.settings.max_read_bytes)}")
        if expected is not None and len(bodies) != expected:
            raise LongbowRejected(
                f"Longbow at {self.address.data}, {where}: {len(bodies)} results instead of {expected}; "
                "is that address a Longbow server?"
            )
        return bodies


def _connect(address: str, credentials: Credentials) -> flight.FlightClient:
    location = address if "://" in address else f"grpc://{address}"
    options = [*_CHANNEL_OPTIONS, ("grpc.max_receive_message_length", MAX_ANSWER_BYTES)]
    return flight.FlightClient(location, generic_options=options, **credentials.flight_arguments())


def _asks_to_slow_down(reader: flight.FlightMetadataReader) -> bool:
    """What the server said during the put, normally nothing. Call it after the last row: it ends with the stream."""
    asked = False
    while (message := reader.read()) is not None:  # up to the deadline
        asked |= _parse_object(message).get("status") == "slow_down"
    return asked


def _close_quietly(writer: flight.FlightStreamWriter) -> None:
    """End a stream that has failed already: its first error is the one to report."""
    try:
        writer.close()
    except (pa.ArrowException, flight.FlightError, OSError, KeyError):
        return


def _parse_object(message: pa.Buffer) -> dict[str, Any]:
    """A JSON object of the server's. Raises ArrowInvalid when it is none."""
    try:
        values = json.loads(message.to_pybytes())
    except (ValueError, RecursionError) as error:
        raise pa.ArrowInvalid(f"the answer is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise pa.ArrowInvalid("the answer is no JSON object")
    return values


def _readiness(values: dict[str, Any]) -> Readiness:
    """Raises ArrowInvalid when a value is of another type than it can be."""
    said = Readiness(
        values.get("status", "READY"),
        values.get("reason", ""),
        values.get("index_len"),
        vector_type=values.get("vector_type", ""),
        scan_columns=values.get("scan_columns", False),
    )
    types = values.get("vector_types", list(SEARCHED_BY_EVERY_SERVER))
    texts = (said.reason, said.vector_type, *(types if isinstance(types, list) else [None]))
    sizes_fit = said.index_len is None or type(said.index_len) is int
    if said.status not in ("READY", "BUSY", "NOT_FOUND") or not all(isinstance(text, str) for text in texts):
        raise pa.ArrowInvalid(f"the answer is not that of a Longbow server: {str(values)[:200]}")
    if not sizes_fit or type(said.scan_columns) is not bool:
        raise pa.ArrowInvalid(f"the answer is not that of a Longbow server: {str(values)[:200]}")
    return replace(said, vector_types=tuple(types))


def _checked(reader: flight.FlightStreamReader) -> Iterator[pa.RecordBatch]:
    """The batches of a stream. Raises ArrowInvalid for values that are not what their type says: offsets that point
    elsewhere would end the process when they are read."""
    for chunk in reader:
        if chunk.data is not None:
            chunk.data.validate(full=True)
            _RECEIVED.inc(chunk.data.nbytes)
            yield chunk.data


def _read_all(reader: flight.FlightStreamReader, most: int) -> pa.Table:
    """The whole stream. Raises ArrowInvalid as `_checked`, and for more than `most` bytes."""
    batches, size = [], 0
    for batch in _checked(reader):
        batches.append(batch)
        size += 1024 + batch.nbytes  # empty ones add up too
        if size > most:
            reader.cancel()
            raise pa.ArrowInvalid(_too_much(most))
    return pa.Table.from_batches(batches, schema=reader.schema)


def _ids(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """The ids in a column. Raises ArrowInvalid when they cannot be Fletcher's."""
    if not pa.types.is_integer(column.type) or column.null_count:
        raise pa.ArrowInvalid(f"column id is of {column.type}, or has nulls: these are not Fletcher's rows")
    return np.asarray(column.to_numpy(), dtype=np.uint64)


def _too_much(most: int) -> str:
    return f"the answer has more than max_read_bytes ({most}): ask for fewer rows, or raise it"


def _read_hits(answer: pa.Buffer) -> pa.Table:
    """One query's hits. Raises ArrowInvalid when they are none."""
    hits = pa.ipc.open_stream(answer).read_all()
    hits.validate(full=True)
    if hits.column_names != ["id", "score"] or hits.schema.types != [pa.uint64(), pa.float32()]:
        raise pa.ArrowInvalid(
            f"the hits have the columns {str(hits.schema)[:200]}, not id (uint64) and score (float32)"
        )
    return hits

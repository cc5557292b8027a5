"""The data and the meta port: Flight calls in, `ServerState` asked, Arrow streams and Longbow's status codes out."""

import json
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.errors import LongbowError
from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.secret import Secret
from fletcher_core.longbow.server.access import ServerTls, TokenCheck, check_exposure
from fletcher_core.longbow.server.actions import hits_batch, run_action
from fletcher_core.longbow.server.dataset import Dataset
from fletcher_core.longbow.server.faults import Faults
from fletcher_core.longbow.server.limits import Limits
from fletcher_core.longbow.server.state import ServerState

_SCAN_CHUNK_ROWS = 8192
_SCAN_KEYS = {"name", "dataset", "filters", "limit", "search"}
_EXTENDED_SCAN_KEYS = {*_SCAN_KEYS, "columns"}
_SEARCH_KEYS = {
    *("dataset", "vector", "k", "filters", "text_query", "alpha", "graph_alpha"),
    *("local_only", "include_vectors", "vector_format"),
}


class LongbowServer:
    """A Longbow-compatible server on two ports of this process, for demos and tests.

    Rows live in `folder` and survive a restart. Port 0 chooses a free one: see `address`. Serves until `close`.
    With `tls` both ports speak TLS; with `token` or `token_file` every call must bring the token. A host that other
    machines reach needs a token or client certificates.

    Raises LongbowError when another server owns the folder or a port is taken, ConfigError for unusable TLS files or
    token, and for a host that is open to all.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        host: str = "127.0.0.1",
        data_port: int = 0,
        meta_port: int = 0,
        faults: Faults | None = None,
        tls: ServerTls | None = None,
        token: Secret | None = None,
        token_file: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        has_token = token is not None or token_file is not None
        check_exposure(host, has_token=has_token, tls=tls)
        scheme, arguments = ("grpc+tls", tls.flight_arguments()) if tls else ("grpc", {})
        if has_token:
            arguments["middleware"] = {"token": TokenCheck(token, token_file)}
        self._state = ServerState(Path(folder), faults or Faults(), limits or Limits())
        self._ports: list[flight.FlightServerBase] = []
        try:
            self._ports.append(_DataPort(self._state, f"{scheme}://{host}:{data_port}", arguments))
            self._ports.append(_MetaPort(self._state, f"{scheme}://{host}:{meta_port}", arguments))
        except pa.ArrowException as error:
            self.close()
            raise LongbowError(
                f"the embedded Longbow server cannot listen on {host}, ports {data_port} and {meta_port}: another "
                "program has one of them. Choose others, or 0 for any"
            ) from error
        data, meta = (port.port for port in self._ports)
        self.address = LongbowAddress(f"{scheme}://{host}:{data}", f"{scheme}://{host}:{meta}")

    @property
    def faults(self) -> Faults:
        """The faults in force; assign another value to change them at once."""
        return self._state.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._state.faults = faults

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last call came in."""
        return time.monotonic() - self._state.last_call

    def close(self) -> None:
        """End both ports, stalled puts included, and let go of the folder."""
        self._state.stopping.set()
        for port in self._ports:
            port.shutdown()
        self._state.close()

    def __enter__(self) -> "LongbowServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Port(flight.FlightServerBase):  # type: ignore[misc]
    """What both ports do: scans, searches, actions. Calls that are not overridden answer UNIMPLEMENTED."""

    is_meta = False

    def __init__(self, state: ServerState, location: str, arguments: dict[str, Any]) -> None:
        self._state = state  # first: calls come in as soon as the port is open
        try:
            super().__init__(location, **arguments)
        except pa.ArrowException:
            del self._state  # pyarrow never frees a server that did not start
            raise

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        self._state.begin_call()
        extended = not self._state.faults.no_extensions
        request = self._parse_ticket(ticket.ticket, _EXTENDED_SCAN_KEYS if extended else _SCAN_KEYS)
        if "search" in request:
            return flight.RecordBatchStream(pa.Table.from_batches([hits_batch(self._search(request["search"]))]))
        name, columns = request.get("name", request.get("dataset", "")), request.get("columns")
        if not isinstance(name, str):
            raise pa.ArrowInvalid("invalid ticket format: name is no string")
        if columns is not None and not _is_list_of_names(columns):
            raise pa.ArrowInvalid("invalid ticket format: columns is no list of names")
        dataset, filters = self._state.dataset(name), self._state.filters(request)
        table = dataset.scan(filters, self._state.faults, columns)
        batches = table.to_batches(max_chunksize=_SCAN_CHUNK_ROWS)
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(table.schema, batches))

    def _parse_ticket(self, ticket: bytes, known: Set[str] = _SCAN_KEYS) -> dict[str, Any]:
        """JSON, or a bare dataset name. Raises ArrowInvalid for JSON that is no ticket of the known keys."""
        limits = self._state.limits
        if not ticket.startswith(b"{"):
            return {"name": limits.dataset_of([ticket])}
        request = limits.parse_json(ticket, "ticket", limits.ticket_bytes)
        if not isinstance(request, dict) or request.keys() - known:
            raise pa.ArrowInvalid("invalid ticket format")
        return request

    def _search(self, request: Any) -> Any:
        if not isinstance(request, dict) or request.keys() - _SEARCH_KEYS:
            raise pa.ArrowInvalid("invalid ticket format")
        return self._state.cached_search(request)

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[bytes]:
        if action.type == "fault":  # must get through to end the others
            self._state.last_call = time.monotonic()
        else:
            self._state.begin_call()
        return run_action(self._state, action.type, action.body.to_pybytes(), meta=self.is_meta)

    def get_schema(self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor) -> Any:
        raise pa.ArrowInvalid("tried reading schema message, was null or length 0")

    def list_actions(self, context: flight.ServerCallContext) -> Any:
        raise NotImplementedError("method ListActions not implemented")


class _DataPort(_Port):
    """Writes."""

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        self._state.begin_call()
        if not descriptor.path:
            raise flight.FlightInternalError("a put needs a path descriptor")
        faults = self._state.faults
        if faults.resource_exhausted:
            raise pa.ArrowInvalid("gRPC returned resource exhausted error, with message: fault: out of memory")
        if faults.slow_down:
            writer.write(b'{"status": "slow_down", "reason": "wal_pressure"}')
        dataset = self._state.dataset_for_put(self._state.limits.dataset_of(descriptor.path), reader.schema)
        self._state.put(dataset, _batches(reader), context.is_cancelled)
        self._state.last_call = time.monotonic()

    def do_exchange(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.MetadataRecordBatchWriter,
    ) -> None:
        """Ingest a batch at a time, each acknowledged. Unlike Longbow's, this checks the schema too."""
        self._state.last_call = time.monotonic()
        if len(descriptor.path) < 2 or descriptor.path[0] != b"ingest":
            raise pa.ArrowInvalid("the path of an exchange is ['ingest', dataset]")
        dataset = self._state.dataset_for_put(self._state.limits.dataset_of(descriptor.path, 1), reader.schema)
        for number, batch in enumerate(_batches(reader)):
            self._state.put(dataset, [batch], context.is_cancelled)
            acknowledgement = {"batch_id": number, "rows": batch.num_rows, "status": "acked"}
            writer.write_metadata(json.dumps(acknowledgement).encode())


class _MetaPort(_Port):
    """Listings."""

    is_meta = True

    def list_flights(self, context: flight.ServerCallContext, criteria: bytes) -> Iterator[flight.FlightInfo]:
        self._state.last_call = time.monotonic()
        filters = self._state.filters(self._parse_ticket(criteria)) if criteria else []
        matching = [d for d in self._state.datasets() if all(_listed(d, f.field, f.operator, f.value) for f in filters)]
        return iter([_info(flight.FlightDescriptor.for_path(d.name), 0, 0) for d in matching])

    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        """`total_records` counts stored batches, as Longbow does."""
        self._state.last_call = time.monotonic()
        if not descriptor.path:
            raise pa.ArrowInvalid("Empty path")
        dataset = self._state.dataset(self._state.limits.dataset_of(descriptor.path))
        return _info(descriptor, dataset.batch_count, dataset.byte_count)


def _info(descriptor: flight.FlightDescriptor, records: int, size: int) -> flight.FlightInfo:
    return flight.FlightInfo(None, descriptor, [], records, size)


def _listed(dataset: Dataset, field: str, operator: str, value: str) -> bool:
    """The two criteria that a listing knows; any other lets everything pass."""
    if field == "name" and operator == "contains":
        return value in dataset.name
    if field == "rows":
        if not value.isdecimal() or len(value) > 20:
            return False
        rows, bound = dataset.row_count, int(value)
        return {">": rows > bound, "<=": rows <= bound, "==": rows == bound}.get(operator, True)
    return True


def _batches(reader: flight.MetadataRecordBatchReader) -> Iterator[pa.RecordBatch]:
    for chunk in reader:
        if chunk.data is not None:
            try:
                chunk.data.validate(full=True)  # offsets may point anywhere, and reading them would end this process
            except pa.ArrowException as error:
                raise pa.ArrowInvalid(f"the rows are damaged: {str(error)[:300]}") from error
            yield chunk.data


def _is_list_of_names(columns: object) -> bool:
    return isinstance(columns, list) and all(isinstance(column, str) for column in columns)

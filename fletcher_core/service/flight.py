"""Arrow Flight calls in, vectors out: DoExchange answers each batch of texts with the batch and its vectors, DoPut
takes the vectors on to Longbow.

A batch costs no other one anything: a text that cannot be embedded has a null vector, and its reason in the metadata of
the batch, `{"errors": [{"row": 3, "reason": "..."}]}`. Options are a JSON object in the descriptor's command
(`TextRequest`); headers are `authorization: Bearer <key>`, `x-fletcher-timeout: <seconds>` and `traceparent`.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
from opentelemetry.trace import SpanKind

from fletcher_core.errors import ConfigError, FletcherError
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.secret import Secret
from fletcher_core.longbow.server.access import ServerTls
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.flight_access import call_headers, call_seconds, check_exposure, check_keys, middleware
from fletcher_core.service.flight_errors import flight_error
from fletcher_core.service.gateway import Gateway, PutRequest
from fletcher_core.service.read_ahead import ReadAhead, ReadLimits
from fletcher_core.service.running_calls import RunningCalls
from fletcher_core.service.text_batch import TextRequest
from fletcher_core.setting_values import check_whole
from fletcher_core.telemetry.metrics import PANICS, REJECTED, REQUEST_SECONDS
from fletcher_core.telemetry.tracing import TRACER, context_from

_LOG = logging.getLogger(__name__)
_ACTIONS = {
    "health": "Whether the service can embed: a JSON object.",
    "info": "The model and what it takes: a JSON object.",
}


@dataclass(frozen=True)
class FlightSettings:
    """Where the service listens, who may call it, and how much it takes. Raises ConfigError for what cannot work."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 chooses a free one."""
    keys: Sequence[Secret | str] = ()
    """Every call must bring one of them; none: whoever reaches the port may call."""
    tls: ServerTls | None = None
    """PEM files; with `client_ca` clients must show a certificate."""
    calls: int = 64
    """Calls at once; each has two threads."""
    dictionaries: bool = True
    """Take columns of dictionaries. Damaged ones ended the process in fuzzing, where pyarrow reads them, before anybody
    can look at them: set it to False where clients are not trusted, as `fletcher serve` does."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """Of each call."""

    def __post_init__(self) -> None:
        check_whole("port", self.port, 0)
        check_whole("calls", self.calls, 1)
        if self.port > 65535:
            raise ConfigError(f"port is {self.port}: the highest is 65535")
        for name in ("batch_rows", "batch_bytes", "ahead_texts", "ahead_bytes"):
            check_whole(name, getattr(self.limits, name), 1)
        object.__setattr__(self, "keys", check_keys(self.keys))
        check_exposure(self.host, self.hidden_keys, self.tls)

    @property
    def hidden_keys(self) -> tuple[Secret, ...]:
        return check_keys(self.keys)


class FlightService(flight.FlightServerBase):  # type: ignore[misc]
    """Serves from its making until `close`.

    Args:
        batcher: what embeds.
        settings: see there.
        longbow: where DoPut takes vectors; None makes it unimplemented.
        health: what the action `health` answers, a JSON object.

    Raises:
        ConfigError: a TLS file is unusable, or the port is taken.
    """

    def __init__(
        self,
        batcher: Batcher,
        settings: FlightSettings | None = None,
        *,
        longbow: LongbowClient | None = None,
        health: Callable[[], dict[str, Any]] | None = None,
    ):
        self.settings = settings or FlightSettings()
        # Before the port opens: calls come in at once.
        self._batcher = batcher
        self._longbow = longbow
        self._health = health or (lambda: {"status": "ok"})
        self._calls = RunningCalls(self.settings.calls)
        self._stopping = threading.Event()
        self._stopped: threading.Thread | None = None
        tls = self.settings.tls
        scheme, arguments = ("grpc+tls", tls.flight_arguments()) if tls else ("grpc", {})
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        try:
            super().__init__(
                f"{scheme}://{host}:{self.settings.port}", middleware=middleware(self.settings.hidden_keys), **arguments
            )
        except pa.ArrowException as error:
            raise ConfigError(
                f"the Flight service cannot listen on {host}, port {self.settings.port}: another program has it, or "
                "this machine has no such address. Choose another, or port 0 for any"
            ) from error
        self.address = f"{scheme}://{host}:{self.port}"
        """What a client connects to, such as `grpc://127.0.0.1:8815`."""

    @property
    def running_calls(self) -> int:
        """Calls that run now."""
        return self._calls.running

    def drain(self, seconds: float) -> bool:
        """Refuse new calls and wait so long for those that run; whether all have ended."""
        return self._calls.drain(seconds)

    def close(self, seconds: float = 5.0) -> bool:
        """End the service: what runs is ended with UNAVAILABLE. Whether all calls have ended within so many seconds;
        one whose client neither sends nor hangs up cannot be ended, and goes with the process."""
        self._calls.drain(0)
        self._stopping.set()
        if self._stopped is None:
            # pyarrow waits for every call, however long its client is silent.
            self._stopped = threading.Thread(target=self.shutdown, name="fletcher-flight-stop", daemon=True)
            self._stopped.start()
        self._stopped.join(seconds)
        return not self._stopped.is_alive()

    def do_exchange(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.MetadataRecordBatchWriter,
    ) -> None:
        """Batches with a text column in, the same with vectors out, one for one and in order."""
        with self._call("DoExchange", context):
            if descriptor.path:
                raise pa.ArrowInvalid("an exchange takes a command descriptor; a path is for a put")
            embedder = self._batcher.embedder
            request = TextRequest.parse(descriptor.command or b"", embedder.dimension)
            schema = self._schema(reader)
            if schema is None:
                return
            request.check_schema(schema)
            vector = pa.list_(pa.float32(), request.dimension or embedder.dimension)
            answer = schema.append(pa.field(request.output, vector))
            writer.begin(answer)
            with self._reading(context, reader, request) as batches:
                for each in batches:
                    batch = pa.RecordBatch.from_arrays([*each.batch.columns, each.column.vectors], schema=answer)
                    said: dict[str, Any] = {"errors": each.column.errors()} if each.column.reasons else {}
                    if each.failure is not None:
                        said = {"errors": [], "failed": str(each.failure)}
                    if said:
                        writer.write_with_metadata(batch, json.dumps(said).encode())
                    else:
                        writer.write_batch(batch)

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Batches with `id` and texts in; the vectors go to Longbow, and each batch is acknowledged. See `Gateway`."""
        with self._call("DoPut", context):
            if self._longbow is None:
                raise NotImplementedError(
                    "no Longbow server is configured: start the service with its address, or get the vectors by "
                    "DoExchange"
                )
            schema = self._schema(reader)
            if schema is None:
                return
            request = PutRequest.parse(descriptor, schema, self._batcher.embedder.dimension)
            with self._reading(context, reader, request.texts) as batches:
                Gateway(self._longbow, request).run(batches, writer)

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[bytes]:
        """`health` and `info`, answered also while the service is full or drains."""
        if action.type not in _ACTIONS:
            raise NotImplementedError(f"there is no action {action.type[:80]!r}: choose one of {', '.join(_ACTIONS)}")
        with self._answering(action.type):
            said = self._health() if action.type == "health" else self._info()
            return [json.dumps(said).encode()]

    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:
        return list(_ACTIONS.items())

    def list_flights(self, context: flight.ServerCallContext, criteria: bytes) -> Iterator[flight.FlightInfo]:
        """None: the service keeps nothing that could be read."""
        return iter(())

    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        raise pa.ArrowKeyError("the service keeps no data: send texts by DoExchange")

    def get_schema(self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor) -> Any:
        raise pa.ArrowKeyError("the service keeps no data: an exchange's schema is that of the texts, and the vectors")

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> Any:
        raise NotImplementedError("the service keeps no data: send texts by DoExchange")

    def _info(self) -> dict[str, Any]:
        embedder = self._batcher.embedder
        limits = self.settings.limits
        return {
            "model": embedder.card.name,
            "fingerprint": embedder.card.fingerprint,
            "dimension": embedder.dimension,
            "normalized": embedder.normalize,
            "max_length": embedder.encoder.max_length,
            "long_text": embedder.encoder.long_text,
            "engine": embedder.engine.name,
            "precision": embedder.engine.precision,
            "batch_rows": limits.batch_rows,
            "batch_bytes": limits.batch_bytes,
            "longbow": self._longbow is not None,
        }

    def _reading(
        self, context: flight.ServerCallContext, reader: flight.MetadataRecordBatchReader, request: TextRequest
    ) -> ReadAhead:
        seconds = call_seconds(call_headers(context))
        deadline = None if seconds is None else time.monotonic() + seconds
        limits, gone = self.settings.limits, context.is_cancelled
        return ReadAhead(reader, request, self._batcher, limits, deadline, gone, self._stopping)

    @contextmanager
    def _call(self, route: str, context: flight.ServerCallContext) -> Iterator[None]:
        called = TRACER.start_as_current_span(route, context_from(call_headers(context)), SpanKind.SERVER)
        with self._answering(route), self._calls.one(), called:
            yield

    @contextmanager
    def _answering(self, route: str) -> Iterator[None]:
        """Counts the call, and lets out only what Flight has a status for."""
        started, status = time.perf_counter(), "FAILED"
        try:
            yield
            status = "OK"
        except FletcherError as error:
            raise flight_error(error) from None  # pyarrow sends the whole chain along
        except (flight.FlightError, pa.ArrowException, NotImplementedError):
            raise
        except OSError as error:  # of writing an answer
            REJECTED.labels("disconnected").inc()
            raise flight.FlightUnavailableError(f"the client has left: {str(error)[:300]}") from None
        except Exception:  # noqa: BLE001 - told without what it says, which is for the log alone
            PANICS.labels("flight").inc()
            _LOG.exception("a Flight call failed in a way that is not Fletcher's: %s", route)
            raise flight.FlightInternalError("the service failed by a fault of its own: see its log") from None
        finally:
            REQUEST_SECONDS.labels(route, status).observe(time.perf_counter() - started)

    def _schema(self, reader: flight.MetadataRecordBatchReader) -> pa.Schema | None:
        """The schema of the stream; None where the client ended it without sending one."""
        try:
            schema = reader.schema
        except OSError as error:
            if "never sent a data message" in str(error):
                return None
            raise pa.ArrowInvalid(f"the stream is damaged: {str(error)[:300]}") from None
        if not self.settings.dictionaries and (found := [each.name for each in schema if _has_dictionary(each.type)]):
            raise pa.ArrowInvalid(
                f"column {found[0]!r} is a dictionary, which this service does not take: send its values, as "
                "dictionary_decode() gives them"
            )
        return schema


def _has_dictionary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    return pa.types.is_dictionary(kind) or any(_has_dictionary(kind.field(at).type) for at in range(kind.num_fields))

"""A client's side of DoExchange, as in docs/service.md: write on one thread, read on the other."""

import json
import threading
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

SECONDS = 60.0


def command(**options: Any) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(json.dumps(options).encode() if options else b"")


def call_options(seconds: float = SECONDS, **headers: str) -> flight.FlightCallOptions:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return flight.FlightCallOptions(timeout=seconds, headers=pairs or None)


def exchange(
    client: flight.FlightClient,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    options: flight.FlightCallOptions | None = None,
    **choices: Any,
) -> tuple[list[pa.RecordBatch], list[list[dict[str, Any]]]]:
    """The answered batches, and the errors of each."""
    writer, reader = client.do_exchange(command(**choices), options or call_options())

    def write() -> None:
        try:
            writer.begin(schema)
            for batch in batches:
                writer.write_batch(batch)
            writer.done_writing()
        except (pa.ArrowException, flight.FlightError, OSError):
            return  # the reader tells why

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    answered, errors = [], []
    try:
        for chunk in reader:
            answered.append(chunk.data)
            said = json.loads(chunk.app_metadata.to_pybytes()) if chunk.app_metadata is not None else {}
            errors.append(said.get("errors", []))
    finally:
        thread.join()
    writer.close()
    return answered, errors

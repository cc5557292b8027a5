"""Dagster's runs in traces: a span around an asset's partition or range of them, with what Dagster calls it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from opentelemetry.util.types import AttributeValue

from fletcher_core.errors import ConfigError
from fletcher_core.telemetry.tracing import flush_traces, span, start_tracing, trace_id

_LOG = logging.getLogger(__name__)


@contextmanager
def traced_run() -> Iterator[None]:
    """Tracing as the standard environment variables say, sent before the block is left: a run's process may be short.

    The variables are often other programs' too: where they cannot work here, the run goes on without a trace.
    """
    try:
        start_tracing("fletcher")
    except ConfigError as error:
        _LOG.warning("this run is not traced: %s", error)
    try:
        yield
    finally:
        flush_traces()


@contextmanager
def partition_span(context: dg.AssetExecutionContext, key: dg.AssetKey, partition_key: str) -> Iterator[str]:
    """The block as a span, the root of a trace of its own unless one is current already; the trace's id, '' for none.

    Partitions of a range go through the engine together, and so are one trace; its spans are few however many they are.
    """
    attributes: dict[str, AttributeValue] = {
        "dagster.run_id": context.run.run_id,
        "dagster.job_name": context.job_name,
        "dagster.asset_key": key.to_user_string(),
    }
    if partition_key:
        attributes["dagster.partition_key"] = partition_key
    with span("dagster.asset", attributes) as begun:
        yield trace_id(begun)

"""The process of a worker: a shard's rows in, segments on the store's disk and their books out. An actor of Ray's."""

import importlib.metadata
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from opentelemetry.trace import SpanKind

from fletcher_core.cluster.shard import Shard, ShardResult, Span, WorkerFacts
from fletcher_core.embedder import Embedder
from fletcher_core.errors import StoreError
from fletcher_core.run_compute import FinishedPiece
from fletcher_core.stop import Stop
from fletcher_core.store.planned import write_planned
from fletcher_core.tally import finish_piece, pieces_of
from fletcher_core.telemetry.logs import log_ids
from fletcher_core.telemetry.push import Pusher
from fletcher_core.telemetry.stage_spans import stages_of
from fletcher_core.telemetry.stages import Busy, observed
from fletcher_core.telemetry.tracing import TRACER, context_from, flush_traces, start_tracing
from fletcher_core.window import open_window

# Stages' spans that lie closer together than this are told of as one, in seconds.
_GAP = 0.01


class Worker:
    """One engine. Several shards may be given to it at a time: they take turns at the engine, and while one computes
    another is tokenized or written.

    Args:
        number: of the worker, in its metrics.
        embedder: settings of `Embedder.load`.
        metrics: where its metrics are pushed to, see `Pusher`.
    """

    def __init__(self, number: int, embedder: Mapping[str, Any], metrics: str) -> None:
        self._settings = embedder
        self._cancelled: dict[str, threading.Event] = {}
        self._held = ExitStack()
        start_tracing()
        self._held.enter_context(Pusher(metrics, job="fletcher", grouping={"worker": str(number)}))

    def load(self) -> WorkerFacts:
        """Loads the model.

        Raises:
            ModelError, ConfigError, EngineError: as `Embedder.load`.
        """
        self._embedder = embedder = Embedder.load(**self._settings)
        engine = embedder.engine
        return WorkerFacts(
            card=embedder.card,
            engine=engine.name,
            device=engine.device,
            precision=engine.precision,
            tokenizer=embedder.encoder.tokenizer.name,
            host=socket.gethostname(),
            node=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
            version=importlib.metadata.version("fletcher"),
        )

    def cancel(self, call: str) -> None:
        """The shards of this `Shard.call` stop, those at work within about a batch's time."""
        self._cancelled.setdefault(call, threading.Event()).set()

    def close(self) -> None:
        """Sends the last metrics and spans."""
        self._held.close()
        flush_traces()

    def embed(self, shard: Shard, rows: pa.Table) -> ShardResult:
        """Computes the vectors of `rows` and writes them to the segments that were planned for them.

        Raises:
            StoreError: the store's disk is full, or not to be seen from here.
            EngineError: the engine is broken, whatever the text.
            RunCancelled: `cancel` was called.
        """
        stop = Stop(self._cancelled.setdefault(shard.call, threading.Event()))
        for folder in {plan.where.parent for plan in shard.plans if isinstance(plan.where, Path)}:
            _check_seen(folder)
        attributes: dict[str, str | int] = {"fletcher.run_id": shard.run_id, "fletcher.rows": rows.num_rows}
        spans = _Spans()
        with (
            log_ids(run_id=shard.run_id),
            TRACER.start_as_current_span(
                "shard", context_from(shard.trace), kind=SpanKind.CONSUMER, attributes=attributes
            ),
            stages_of() as traced,
        ):
            pieces = self._embedded(shard, rows, stop, spans.also(traced), spans)
        return ShardResult(tuple(pieces), spans.before_now(), self._embedder.health)

    def _embedded(self, shard: Shard, rows: pa.Table, stop: Stop, busy: Busy, spans: "_Spans") -> list[FinishedPiece]:
        embedder, window = self._embedder, open_window(rows)
        texts = rows["text"].take(pa.array(window.unique))
        ((_, result),) = embedder.stream([(None, texts)], stop, ahead=0, busy=busy)
        seconds = spans.seconds()
        finished = []
        for (own, share), plan in zip(pieces_of(window, shard.sizes, result), shard.plans, strict=True):
            began = time.perf_counter()
            joined, tally = finish_piece(own, result, embedder, plan.schema, share)
            guarded = time.perf_counter()
            observed(busy)("guard", began, guarded)
            written = write_planned(plan, joined.rows, time.time()) if joined.rows.num_rows else None
            ended = time.perf_counter()
            observed(busy)("write", guarded, ended)
            tally.add_seconds(seconds, share)
            tally.add_seconds({"guard": guarded - began, "write": ended - guarded})
            finished.append(FinishedPiece(tally, joined.refused, segment=written, share=share))
        return finished


class _Spans:
    """Collects when stages were busy; the `Busy` of one shard."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def also(self, other: Busy) -> Busy:
        """A `Busy` that tells `other` too."""

        def busy(stage: str, began: float, ended: float) -> None:
            other(stage, began, ended)
            last = next((span for span in reversed(self._spans) if span.stage == stage), None)
            if last is not None and 0 <= began - last.ended < _GAP:
                self._spans.remove(last)
                began = last.began
            self._spans.append(Span(stage, began, ended))

        return busy

    def seconds(self) -> dict[str, float]:
        """By stage, so far."""
        found: dict[str, float] = {}
        for span in self._spans:
            found[span.stage] = found.get(span.stage, 0.0) + span.ended - span.began
        return found

    def before_now(self) -> tuple[Span, ...]:
        """All of them, in seconds before now."""
        now = time.perf_counter()
        return tuple(Span(span.stage, span.began - now, span.ended - now) for span in self._spans)


def _check_seen(folder: Path) -> None:
    if not folder.is_dir():
        raise StoreError(
            f"the worker on {socket.gethostname()} does not see the vector store: there is no {str(folder)!r}. Workers "
            "write to it: keep the store on a file system that all machines of the cluster mount at the same path, or "
            "on object storage"
        )

"""What is said of a run in its span and in its line of the log: a `RunReport` in, attributes and one sentence out."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Protocol

from opentelemetry.trace import Span

from fletcher_core.models import ModelCard
from fletcher_core.telemetry.report import RunReport
from fletcher_core.telemetry.tracing import span

_LOG = logging.getLogger(__name__)


class _Engine(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...


class _Embedder(Protocol):
    @property
    def card(self) -> ModelCard: ...
    @property
    def engine(self) -> _Engine: ...


@contextmanager
def run_span(run_id: str, collection: str, partition_key: str, embedder: _Embedder) -> Iterator[Span]:
    """The block as the span `materialize` of a run, current inside it."""
    attributes = {
        "fletcher.run_id": run_id,
        "fletcher.collection": collection,
        "fletcher.partition": partition_key,
        "fletcher.model": embedder.card.name,
        "fletcher.engine": embedder.engine.name,
        "fletcher.device": embedder.engine.device,
    }
    with span("materialize", attributes) as begun:
        yield begun


def describe_run(run: Span, report: RunReport) -> None:
    """Give the run's span its figures."""
    if run.is_recording():
        run.set_attributes({f"fletcher.{name}": value for name, value in run_figures(report).items()})


def run_figures(report: RunReport) -> dict[str, int | float | str]:
    """The figures that a run is judged by: rows by what became of them, speed, seconds by stage, delivery."""
    delivery = report.delivery
    figures: dict[str, int | float | str] = {
        "partition": report.partition_key,
        "model": report.card.name,
        "engine": report.engine,
        "precision": report.precision,
        "device": report.device,
        "rows_new": report.new,
        "rows_changed": report.changed,
        "rows_stale": report.stale,
        "rows_unchanged": report.unchanged,
        "rows_deleted": report.deleted,
        "rows_skipped": report.skipped,
        "rows_quarantined": report.quarantined,
        "rows_embedded": report.embedded,
        "rows_in_store": report.rows_in_store,
        "cache_hits": report.cache_hits,
        "tokens": report.tokens,
        "texts_per_s": round(report.texts_per_s, 1),
        "tokens_per_s": round(report.tokens_per_s, 1),
        "seconds_total": round(report.seconds_total, 4),
        **{f"seconds_{stage}": round(seconds, 4) for stage, seconds in asdict(report.seconds).items()},
        "engine_failures": report.engine_failures,
        "longbow_rows_sent": delivery.sent,
        "longbow_rows_searchable": delivery.searchable,
        "longbow_rows_pending": delivery.pending,
    }
    return figures | ({"longbow_problem": delivery.problem} if delivery.problem else {})


def run_line(report: RunReport) -> str:
    """The same in one sentence for people."""
    busy = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in asdict(report.seconds).items() if seconds >= 0.005)
    delivery = report.delivery
    delivered = f"; Longbow: {delivery.sent:,} rows sent, {delivery.searchable:,} searchable, {delivery.pending:,} wait"
    return (
        f"{report.new:,} new, {report.changed:,} changed, {report.stale:,} stale, {report.unchanged:,} unchanged, "
        f"{report.deleted:,} deleted, {report.quarantined:,} quarantined; embedded "
        f"{report.embedded:,} texts in {report.seconds_total:.1f} s ({report.texts_per_s:,.0f} texts/s, "
        f"{report.tokens_per_s:,.0f} tokens/s; {report.engine} {report.precision} on {report.device})"
        + (f"; busy seconds: {busy}" if busy else "")
        + (delivered if delivery.sent or delivery.searchable or delivery.pending else "")
    )


def log_run(report: RunReport) -> None:
    """One line of the log; its figures are fields of their own where the log is JSON."""
    name = report.generation + (f"/{report.partition_key}" if report.partition_key else "")
    _LOG.info("%s: %s", name, run_line(report), extra={"figures": run_figures(report)})

"""The body of an embedding asset: what happens between Dagster's context and the events that it yields.

In come the context of a run and the resource; for each selected asset and each partition the pipeline runs once,
and out go one `MaterializeResult` an asset and its check results. A range of partitions is reported one by one as
it is committed, so that Dagster knows what is done when the run is killed halfway.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import dagster as dg

from fletcher_core.addresses import below
from fletcher_core.embedder import Embedder
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.pipeline import MaterializeSettings, materialize_partitions
from fletcher_core.run_compute import Compute
from fletcher_core.sources import Partition, Source
from fletcher_core.store import VectorStore
from fletcher_core.store.quarantine import ROW_SCHEMA
from fletcher_core.telemetry import RunReport
from fletcher_core.telemetry.push import Pusher
from fletcher_core.telemetry.run_figures import run_line
from fletcher_dagster.check_run import check_asset, selected_checks, tally_of
from fletcher_dagster.checks import Tally
from fletcher_dagster.columns import column_lineage
from fletcher_dagster.core_warnings import core_warnings
from fletcher_dagster.declaration import collection_name, declared_source
from fletcher_dagster.failures import reported_in_words
from fletcher_dagster.metadata import commit_line, run_metadata, run_summary_metadata
from fletcher_dagster.partitions import dimension_tags, slices_of
from fletcher_dagster.progress import RunProgress, watched
from fletcher_dagster.tracing import partition_span, traced_run

if TYPE_CHECKING:
    from fletcher_dagster.resources import FletcherResource

AssetEvent = dg.MaterializeResult[Any] | dg.AssetCheckResult


def run_assets(context: dg.AssetExecutionContext, fletcher: FletcherResource) -> Iterator[AssetEvent]:
    """Materializes the selected assets one after another; assets of which only checks are selected are checked."""
    with traced_run(), ExitStack() as stack:
        # Loaded, or its workers started, once for all assets, and only where there is something to embed.
        compute = cache(lambda: stack.enter_context(fletcher.computing()))
        for key, spec in context.assets_def.specs_by_key.items():
            if key in context.selected_asset_keys:
                yield from _materialize_asset(context, fletcher, spec, compute)
            elif any(check.asset_key == key for check in context.selected_asset_check_keys):
                yield from check_asset(context, fletcher, spec)


@dataclass(frozen=True)
class _Outcome:
    """One partition after its run."""

    partition_key: str
    line: str
    metadata: dict[str, Any]
    version: str
    tally: Tally


def _materialize_asset(
    context: dg.AssetExecutionContext,
    fletcher: FletcherResource,
    spec: dg.AssetSpec,
    compute: Callable[[], Embedder | Compute],
) -> Iterator[AssetEvent]:
    name = spec.key.to_user_string()
    with reported_in_words(context, f"embedding {name}") as far, ExitStack() as stack:
        hand_on = stack.enter_context(core_warnings(context))
        stack.enter_context(Pusher(fletcher.metrics, job="fletcher", grouping={"asset": name}))
        source = declared_source(spec)
        slices = slices_of(context, spec, source)
        embedder = compute()
        longbow = fletcher.longbow_client()
        if longbow is not None:
            stack.enter_context(longbow)
        store = stack.enter_context(fletcher.store(spec.key))
        settings, lineage = fletcher.materialize_settings(), column_lineage(source, spec)
        run = _AssetRun(context, spec.key, source, embedder, store, longbow, settings, lineage, fletcher.dashboard_url)
        progress = RunProgress(context, spec.key, name)
        far.said, far.figures = progress.committed, progress.figures
        outcomes = run.materialize(slices, progress, hand_on)
    yield _result(spec.key, outcomes)
    yield from selected_checks(context, fletcher, spec.key, [outcome.tally for outcome in outcomes])


@dataclass(frozen=True)
class _AssetRun:
    """What the partitions of an asset share during a run."""

    context: dg.AssetExecutionContext
    key: dg.AssetKey
    source: Source
    embedder: Embedder | Compute
    store: VectorStore
    longbow: LongbowClient | None
    settings: MaterializeSettings
    lineage: dg.TableColumnLineage | None
    dashboard_url: str

    def materialize(
        self, slices: Sequence[Partition], progress: RunProgress, hand_on: Callable[[], None]
    ) -> list[_Outcome]:
        """Runs the pipeline over the slices; each of several is reported to Dagster as soon as it is committed."""
        several = len(slices) > 1
        outcomes: list[_Outcome] = []
        span_key = f"{slices[0].key}...{slices[-1].key}" if several else slices[0].key
        began = time.monotonic()
        with partition_span(self.context, self.key, span_key) as trace:

            def work(cancelled: threading.Event, committed: Callable[[RunReport], None]) -> list[RunReport]:
                return materialize_partitions(
                    self.source,
                    slices,
                    embedder=self.embedder,
                    store=self.store,
                    longbow=self.longbow,
                    settings=self.settings,
                    committed=committed,
                    progress=progress.update,
                    cancelled=cancelled,
                    run_id=self.context.run.run_id,
                    log_figures=False,  # Dagster's own log of the run, or its event, says it
                )

            def committed(report: RunReport) -> None:
                outcomes.append(self._outcome(report, trace, several))
                if several:
                    _report_committed(self.context, self.key, outcomes[-1])

            def show() -> None:
                hand_on()
                progress.show()

            reports = watched(work, show, committed)
        if several:
            self.context.log_event(
                dg.AssetObservation(
                    asset_key=self.key,
                    description=f"{len(reports):,} partitions in one run",
                    metadata=run_summary_metadata(reports, time.monotonic() - began),
                )
            )
        return outcomes

    def _outcome(self, report: RunReport, trace: str, several: bool) -> _Outcome:
        """Looks at what the store holds of a partition that the pipeline is done with."""
        key = report.partition_key
        what = "/".join(filter(None, [self.key.to_user_string(), key]))
        if not several:  # else the event's description says it: each line of a log costs as much as an event
            line = f"{what}: {report.rows_in_store:,} rows in the store; {run_line(report)}"
            self.context.log.info(line + (f"; trace {trace}" if trace else ""))
        _log_mishaps(self.context, what, report)
        quarantined = self.store.quarantine.read(key) if report.quarantined else ROW_SCHEMA.empty_table()
        metadata = run_metadata(
            report,
            schema=self.store.named(report.generation).schema,
            folder=below(self.store.place.address, report.generation),
            collection=collection_name(self.key),
            partitioned=bool(key),
            delivered=self.longbow is not None,
            limited=self.settings.max_rows is not None,
            trace=trace,
            lineage=self.lineage,
            quarantined=quarantined,
            dashboard_url=self.dashboard_url,
            pictures=not several or bool(report.stages),  # of a range the last one carries the run's
        )
        present = report.new + report.changed + report.stale + report.unchanged - report.remaining
        tally = tally_of(key, report.rows_in_store, present, quarantined, generation=report.generation)
        return _Outcome(key, f"{key}: {commit_line(report)}", metadata, report.content_version, tally)


def _report_committed(context: dg.AssetExecutionContext, key: dg.AssetKey, outcome: _Outcome) -> None:
    """Tells Dagster at once that this partition is done, and what to say of it again when the whole range is.

    Neither event can say less: pages, Dagster's check of changed columns and the column lineage look at the latest one
    alone, which is the first where the run is killed.
    """
    spec = context.assets_def.specs_by_key[key]
    context.log_event(
        dg.AssetMaterialization(
            asset_key=key,
            partition=outcome.partition_key,
            description=outcome.line,
            metadata=outcome.metadata,
            tags={
                "dagster/data_version": outcome.version,
                "dagster/data_version_is_user_provided": "true",
                "dagster/code_version": spec.code_version or context.run.run_id,  # as Dagster has it
                **dimension_tags(spec.partitions_def, outcome.partition_key),
            },
        )
    )
    context.add_asset_metadata(outcome.metadata, asset_key=key, partition_key=outcome.partition_key)


def _result(key: dg.AssetKey, outcomes: Sequence[_Outcome]) -> dg.MaterializeResult[Any]:
    """The asset's result. Dagster copies its metadata and version to every partition of the run: with several, the
    figures of each were given to it before, and the version is one of them all."""
    if len(outcomes) == 1:
        (outcome,) = outcomes
        return dg.MaterializeResult(
            asset_key=key, metadata=outcome.metadata, data_version=dg.DataVersion(outcome.version)
        )
    versions = "/".join(outcome.version for outcome in outcomes)
    version = hashlib.sha256(versions.encode()).hexdigest()[:16]
    return dg.MaterializeResult(asset_key=key, data_version=dg.DataVersion(version))


def _log_mishaps(context: dg.AssetExecutionContext, what: str, report: RunReport) -> None:
    if report.note:
        context.log.info(f"{what}: {report.note}")
    if report.engine_problem:
        context.log.warning(
            f"{what}: the engine failed {report.engine_failures} times, and another computed {report.standby_batches} "
            f"batches in its place: {report.engine_problem}"
        )
    if report.remaining:
        context.log.warning(
            f"{what}: {report.remaining:,} rows are left to following runs, as max_rows of the resource says"
        )
    if report.delivery.problem:
        context.log.warning(
            f"{what}: {report.delivery.pending:,} rows wait for Longbow: {report.delivery.problem}. They are safe "
            "in the store and go with the next run"
        )

"""One materialization: bring a source's vectors in the store up to date, and send them on their way to Longbow.

source -> changes -> tokens -> batches -> engine -> guard -> store -> Longbow. Each window of rows goes through on its
own: reading and tokenizing run ahead on one thread, the engine computes, another thread commits, the sender delivers.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fletcher_core.batching import WINDOW
from fletcher_core.changes import Changes, detect_changes
from fletcher_core.embedder import Embedder
from fletcher_core.engines.failover import EngineHealth
from fletcher_core.errors import ConfigError, FletcherError, RunCancelled, StoreError, StoreLockedError
from fletcher_core.given_up import GivenUp
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.sender import DeliveryReport, Sender, SenderSettings
from fletcher_core.sources import Partition, Source, metadata_schema
from fletcher_core.stop import Stop
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store.recent import RecentSegments
from fletcher_core.store.room import check_room
from fletcher_core.store.schema import VectorType
from fletcher_core.telemetry import DeliveryCounts, Progress, RunReport, StageClock, StageSeconds
from fletcher_core.telemetry.context import in_this_context
from fletcher_core.telemetry.logs import log_ids
from fletcher_core.telemetry.run_figures import describe_run, log_run, run_span
from fletcher_core.telemetry.stage_spans import stages_of
from fletcher_core.telemetry.stages import observed
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.window import Window, delete_rows, finish_window, open_window

_LOG = logging.getLogger(__name__)

# Bytes of a segment: one put to Longbow must stay below 32 MiB, and its rows carry a little more than the vector.
_SEGMENT_BYTES = 20 * 2**20
_ROW_OVERHEAD = 512
# The first windows, while nobody knows how fast the engine is.
_FEW_ROWS = 64
# Of texts read and tokenized together: a few windows are on their way at a time, however long the texts are.
_WINDOW_BYTES = 32 * 2**20
# Some full segments: what the sender falls behind by.
_RECENT_BYTES = 3 * _SEGMENT_BYTES
# Equal parts of a run of which the report says how busy each stage was: so many bars fit the page of an asset.
SLICES = 28
# In the order in which a row meets them.
_STAGES = tuple(stage.name for stage in fields(StageSeconds))


@dataclass(frozen=True)
class MaterializeSettings:
    """How a run behaves.

    Args:
        vector_type: how vectors are stored, "float32" or "float16".
        on_empty: null texts and texts without a visible character: "skip" (and count) or "error".
        on_duplicate: an id with several different texts: "quarantine" or "error".
        on_missing: rows of the store that the source does not have at all: "delete" them, or "keep" them, for sources
            that bring a part of the rows at a time. Rows that the source has, but that cannot be embedded any more,
            leave the store either way.
        segment_rows: the most rows of a segment; fewer where vectors are long.
        commit_seconds: commit about this often, so that a killed run loses little more work than this.
        memory_limit: of DuckDB while it detects changes, as DuckDB writes it.
        max_attempts: a row that the engine failed on in so many runs is set aside untried in those that follow, until
            its text or the model changes, or `fletcher quarantine retry` asks for it.
        max_segments: compact a partition that has more files than this at the end of a run.
        min_free_bytes: end the run with a StoreError when less than this would stay free on the store's disk after
            the next commit. The default is room for a segment (20 MiB) several times over: for the manifest, the
            sender and Longbow's own files on the same disk to go on working while the run ends. 0 checks only that
            the commit itself fits.
        delivery_timeout: seconds to wait at the end for Longbow to make the rows searchable; what is not delivered by
            then stays in the store and goes with the next run.
    """

    vector_type: VectorType = "float32"
    on_empty: Literal["skip", "error"] = "skip"
    on_duplicate: Literal["quarantine", "error"] = "quarantine"
    on_missing: Literal["delete", "keep"] = "delete"
    segment_rows: int = 8192
    commit_seconds: float = 10.0
    memory_limit: str = "2GB"
    max_attempts: int = 3
    max_segments: int = 32
    delivery_timeout: float = 60.0
    min_free_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        at_least = {
            "segment_rows": 1, "commit_seconds": 0, "min_free_bytes": 0, "max_attempts": 1, "max_segments": 1,
            "delivery_timeout": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")


def materialize(
    source: Source,
    *,
    embedder: Embedder,
    store: VectorStore,
    partition: Partition | None = None,
    longbow: LongbowClient | None = None,
    settings: MaterializeSettings | None = None,
    sender_settings: SenderSettings | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: threading.Event | None = None,
    run_id: str | None = None,
    log_figures: bool = True,
) -> RunReport:
    """Embed what is new or changed in `source`, remove what is gone, and deliver the difference.

    Rows are committed in segments as the run goes on; a run that is killed or cancelled leaves what it committed, and
    the next one does only the rest.

    Args:
        partition: the slice of the source to bring up to date; None is all of it.
        longbow: where to deliver to; None keeps the vectors in the store only.
        progress: called after each batch, on this thread.
        cancelled: set it to stop within about a batch's time.
        run_id: names the run in the store; made up when None.
        log_figures: say in one line of the log what the run did; False where the caller says it.

    Raises:
        SourceError: the source cannot be read, or has rows that the policy in force refuses.
        InputError: as above, for rows.
        StoreLockedError: another run is writing this partition.
        StoreError, EngineError: the disk or the device failed.
        RunCancelled: `cancelled` was set.
    """
    partition = partition or Partition()
    settings = settings or MaterializeSettings()
    run_id = run_id or uuid4().hex
    generation = store.generation(embedder.card, metadata_schema(source), settings.vector_type)
    with ExitStack() as stack:
        stack.enter_context(log_ids(run_id=run_id))
        span = stack.enter_context(run_span(run_id, store.collection, partition.key, embedder))
        clock = StageClock(also=stack.enter_context(stages_of(span)))
        stack.enter_context(generation.locked(partition.key, run_id))
        folder = stack.enter_context(store.workspace(run_id))
        sender = None
        if longbow is not None:
            generation.recent = RecentSegments(_RECENT_BYTES)
            sender = Sender(generation, longbow, sender_settings or SenderSettings(), busy=clock.busy)
            stack.callback(sender.close)
            sender.start()
        check_room(store.root, 0, settings.min_free_bytes, "the snapshot of changes")
        with clock.measuring("diff"):
            changes = detect_changes(
                source,
                partition,
                generation,
                folder,
                on_empty=settings.on_empty,
                on_duplicate=settings.on_duplicate,
                on_missing=settings.on_missing,
                memory_limit=settings.memory_limit,
                stop=Stop(cancelled),
            )
        run = _Run(
            partition, embedder, store, generation, settings, sender, run_id, changes, clock, progress, cancelled
        )
        run.announce()
        run.quarantine(changes.quarantined)
        run.write_deletes()
        run.embed()
        run.tidy()
        seconds_total = clock.elapsed
        delivery = run.deliver()
        report = run.report(seconds_total, delivery)
        describe_run(span, report)
        if log_figures:
            log_run(report)
        return report


def _problem(report: DeliveryReport) -> str:
    """Why rows are not searchable, empty when all are."""
    said = report.unavailable or report.rejected or report.not_searchable
    if said or report.is_complete:
        return said
    if report.circuit != "closed":
        return "Longbow did not work before, and was still being tried again when delivery_timeout passed"
    return "Longbow was still busy when delivery_timeout passed"


@dataclass
class _Run:
    """The state of one materialization; methods in the order in which they are called."""

    partition: Partition
    embedder: Embedder
    store: VectorStore
    generation: Generation
    settings: MaterializeSettings
    sender: Sender | None
    run_id: str
    changes: Changes
    clock: StageClock
    progress: Callable[[Progress], None] | None
    cancelled: threading.Event | None
    quarantined: int = 0
    truncated: int = 0
    cache_hits: int = 0
    embedded: int = 0
    batched: int = 0
    retried: int = 0
    untried: list[pa.Table] = field(default_factory=list)
    tokens: int = 0
    padded_tokens: int = 0
    timeline: list[tuple[float, float]] = field(default_factory=list)
    note: str = ""
    health_before: EngineHealth = field(init=False)

    def __post_init__(self) -> None:
        self.health_before = self.embedder.health

    @property
    def _to_write(self) -> int:
        return self.changes.new + self.changes.changed + self.changes.stale

    def announce(self) -> None:
        """Say at once what is ahead, above all that a changed model re-embeds everything."""
        if self.changes.stale:
            earlier = ", ".join(other.name for other in self.generation.siblings())
            self.note = (
                f"the model changed: {self.changes.stale} rows of {earlier} are embedded again "
                f"as {self.generation.name}"
            )
            _LOG.info(self.note)

    def quarantine(self, rows: pa.Table, fingerprint: str | None = None) -> None:
        self.store.quarantine.write(rows, run_id=self.run_id, partition_key=self.partition.key, fingerprint=fingerprint)
        self.quarantined += rows.num_rows

    def write_deletes(self) -> None:
        if not self.changes.deleted:
            return
        file = pq.ParquetFile(self.changes.deleted_path)
        for batch in file.iter_batches(self._segment_rows()):
            self._commit(delete_rows(pa.Table.from_batches([batch]), self.generation.schema))

    def embed(self) -> None:
        """Stream the snapshot through the engine; commit finished windows in segments."""
        if not self._to_write:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="fletcher-write") as writer:
            pending: list[pa.Table] = []
            writing: Future[None] | None = None
            last_commit = time.perf_counter()

            def commit() -> None:
                nonlocal writing, pending, last_commit
                if writing is not None:
                    writing.result()  # one segment in the writer's hands at a time: memory stays bounded
                writing = writer.submit(in_this_context(self._commit), pa.concat_tables(pending))
                pending, last_commit = [], time.perf_counter()

            results = self.embedder.stream(self._windows(), Stop(self.cancelled), self._through, busy=self.clock.busy)
            try:
                for window, result in results:
                    pending.append(self._finish(window, result))
                    due = time.perf_counter() - last_commit >= self.settings.commit_seconds
                    if due or sum(rows.num_rows for rows in pending) + WINDOW > self._segment_rows():
                        commit()
            except (FletcherError, KeyboardInterrupt) as error:
                # Finished work is kept, also when the run is asked to stop. Where the store failed it cannot be.
                if pending and not isinstance(error, StoreError):
                    commit()
                raise
            finally:
                results.close()
            if pending:
                commit()
            if writing is not None:
                writing.result()
        self._drop_untried()

    def _drop_untried(self) -> None:
        """Rows that were given up must not be found by what their text was before."""
        for rows in self.untried:
            self.quarantined += rows.num_rows
            self._commit(delete_rows(rows.filter(rows["replaces"].is_valid()), self.generation.schema))

    def tidy(self) -> None:
        """Retire what this run made superfluous, and merge small files."""
        for other in self.generation.siblings():
            if self.partition.key in other.partitions():
                self._retire(other.name, self.partition.key)
        for key in self.generation.partitions():
            # A source is embedded whole or by partitions. Once that changed, rows of the other layout are nobody's to
            # keep up to date, and must not be found any more.
            if (key == "") != (self.partition.key == ""):
                layout = "whole" if key == "" else f"by partitions, {key!r} among them"
                _LOG.warning("%s was embedded %s: those rows are dropped", self.store.collection, layout)
                self._retire(self.generation.name, key)
        self.generation.compact_if_needed(self.partition.key, self.settings.max_segments)
        if self.settings.on_missing == "keep":
            self._keep_quarantined()
        self.store.quarantine.retain(self.partition.key, self.run_id)

    def _keep_quarantined(self) -> None:
        """What earlier runs set aside and this one neither tried nor mended stays in the quarantine."""
        rows = self.store.quarantine.read(self.partition.key)
        rows = rows.filter(pc.not_equal(rows["run_id"], self.run_id))
        if rows.num_rows:
            mended = self.generation.live_ids(rows["id"].to_pylist(), self.partition.key)
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], pa.array(mended, pa.string()))))
            self.store.quarantine.keep(rows, run_id=self.run_id, is_counted=False)

    def _retire(self, generation_name: str, partition_key: str) -> None:
        try:
            self.store.retire(generation_name, partition_key)
        except StoreLockedError as error:  # another run is still at it: the next run retires
            _LOG.warning("outdated rows stay for now: %s", error)

    def deliver(self) -> DeliveryCounts:
        """Wait for Longbow, but neither longer than the settings say, nor past a cancellation, nor while it is down."""
        if self.sender is None:
            return DeliveryCounts()
        deadline = time.perf_counter() + self.settings.delivery_timeout
        while True:
            left = deadline - time.perf_counter()
            report = self.sender.drain(max(0.0, min(left, 0.5)))
            # Nor wait for the trial of a server that failed in this run. One that failed before it gets its chance.
            is_down = report.circuit == "open" or (report.circuit == "half-open" and report.unavailable)
            if report.is_complete or is_down or report.rejected or report.not_searchable or left <= 0:
                break
            if self.cancelled is not None and self.cancelled.is_set():
                raise RunCancelled("the run was cancelled while it waited for Longbow; all rows are in the store")
        self.sender.close()  # now, not after the report: it must not begin another call that is then waited for
        rows = report.rows
        return DeliveryCounts(
            sent=report.rows_sent,
            bytes_sent=report.bytes_sent,
            retired=report.rows_retired,
            pending=sum(rows.get(state, 0) for state in ("pending", "sending", "sent")),
            applied=rows.get("applied", 0) + rows.get("searchable", 0),
            searchable=rows.get("searchable", 0),
            problem=_problem(report),
        )

    def report(self, seconds_total: float, delivery: DeliveryCounts) -> RunReport:
        changes, engine, shares = self.changes, self.embedder.engine, self.clock.shares(SLICES)
        health, before = self.embedder.health, self.health_before
        return RunReport(
            run_id=self.run_id,
            partition_key=self.partition.key,
            generation=self.generation.name,
            card=self.embedder.card,
            engine=engine.name,
            device=engine.device,
            precision=engine.precision,
            tokenizer=self.embedder.encoder.tokenizer.name,
            new=changes.new,
            changed=changes.changed,
            stale=changes.stale,
            unchanged=changes.unchanged,
            deleted=changes.deleted,
            null_text=changes.null_text,
            empty_text=changes.empty_text,
            null_ids=changes.null_ids,
            duplicate_ids=changes.duplicate_ids,
            quarantined=self.quarantined,
            truncated=self.truncated,
            cache_hits=self.cache_hits,
            embedded=self.embedded,
            tokens=self.tokens,
            padded_tokens=self.padded_tokens,
            rows_in_store=self.generation.row_count(self.partition.key),
            seconds_total=seconds_total,
            seconds=StageSeconds(**{stage: self.clock.seconds(stage) for stage in _STAGES}),
            delivery=delivery,
            timeline=tuple(self.timeline),
            stages={stage: shares[stage] for stage in _STAGES if stage in shares},
            seconds_with_delivery=self.clock.elapsed,
            note=self.note,
            cache=None if self.embedder.cache is None else self.embedder.cache.statistics(),
            retried=self.retried,
            engine_failures=health.failed - before.failed,
            engine_problem=health.last_failure if health.failed > before.failed or health.standing_in else "",
            standby_batches=health.batches - before.batches,
            invalid_text=changes.invalid_text,
        )

    def _segment_rows(self) -> int:
        return max(1, min(self.settings.segment_rows, _SEGMENT_BYTES // (4 * self.embedder.dimension + _ROW_OVERHEAD)))

    def _windows(self) -> Iterator[tuple[Window, pa.ChunkedArray]]:
        """Windows of the snapshot with the texts to embed, each text once."""
        given_up = GivenUp(self.store.quarantine, self.partition.key, self.embedder.card, self.settings.max_attempts)
        started = time.perf_counter()
        for batch in self._snapshot():
            rows, untried, known = given_up.part(pa.Table.from_batches([batch]))
            if untried.num_rows:
                self.store.quarantine.keep(known, run_id=self.run_id)
                self.untried.append(untried.select(["id", "replaces"]))
            window = open_window(rows)
            texts = window.rows["text"].take(pa.array(window.unique))
            observed(self.clock.busy)("read", started, time.perf_counter())
            yield window, texts
            started = time.perf_counter()

    def _snapshot(self) -> Iterator[pa.RecordBatch]:
        """The snapshot in pieces, each few enough rows for a window."""
        file = pq.ParquetFile(self.changes.changes_path)
        # An iterator of its own for each: what pyarrow read of a row group it keeps until its iterator ends.
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group)
            of_bytes = max(1, _WINDOW_BYTES * size.num_rows // max(size.total_byte_size, 1))
            for batch in file.iter_batches(min(WINDOW, self._segment_rows(), of_bytes), row_groups=[group]):
                first = 0
                while first < batch.num_rows:
                    piece = batch.slice(first, self._timely_rows())
                    first += piece.num_rows
                    yield piece

    def _timely_rows(self) -> int:
        """Rows of a window that is through within a part of `commit_seconds`, as fast as the run is."""
        return max(_FEW_ROWS, min(WINDOW, int(self._rate() * self.settings.commit_seconds / 4)))

    def _rate(self) -> float:
        """Texts a second through the engine so far."""
        return self.batched / max(self.clock.elapsed - self.clock.seconds("diff"), 1e-9)

    def _finish(self, window: Window, result: EmbeddedTexts) -> pa.Table:
        """A window that came back from the engine -> rows for the store; what is refused goes to the quarantine."""
        with self.clock.measuring("guard"):
            finished = finish_window(window, result, self.embedder, self.generation.schema)
        if finished.refused.num_rows:
            self.quarantine(finished.refused, self.embedder.card.fingerprint)
        self._count(window, result)
        self.truncated += finished.truncated
        return finished.rows

    def _count(self, window: Window, result: EmbeddedTexts) -> None:
        self.embedded += len(window.unique)
        self.cache_hits += window.rows.num_rows - len(window.unique)
        self.tokens += result.computed_tokens
        self.padded_tokens += result.padded_tokens
        self.retried += result.retried
        now = self.clock.elapsed
        since = self.timeline[-1][0] if self.timeline else self.clock.seconds("diff")
        self.timeline.append((now, len(window.unique) / max(now - since, 1e-9)))

    def _through(self, sequences: int) -> None:
        """A batch came back from the engine: tell how far the run is, ahead of the window that it belongs to."""
        self.batched += sequences
        if self.progress is None:
            return
        done = min(self.batched + self.cache_hits, self._to_write)
        self.progress(
            Progress(embedded=done, total=self._to_write, texts_per_s=self._rate(), seconds=self.clock.elapsed)
        )

    def _commit(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        check_room(self.store.root, rows.nbytes, self.settings.min_free_bytes, f"the commit of {rows.num_rows} rows")
        with self.clock.measuring("write"):
            self.generation.write_segment(self.partition.key, rows, self.run_id)
        if self.sender is not None:
            self.sender.notify()

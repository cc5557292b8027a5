"""One partition on its way through a run: what changed in it, pieces of its rows, their commits, and its report.

A run has one of these for each of its partitions, a few of them open at a time. In: a slice of the source and the
store. Out: pieces for the windows that go through the engine, segments in the store, and a `RunReport`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fletcher_core.changes import Changes, detect_changes
from fletcher_core.engines.failover import EngineHealth
from fletcher_core.errors import StoreLockedError
from fletcher_core.given_up import GivenUp
from fletcher_core.run_compute import Compute, FinishedPiece
from fletcher_core.run_settings import MaterializeSettings
from fletcher_core.sources import Partition, Source
from fletcher_core.stop import Stop
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store.content import Content, content_of
from fletcher_core.store.planned import WrittenSegment
from fletcher_core.store.room import check_room
from fletcher_core.store.rows import delete_rows
from fletcher_core.tally import Tally
from fletcher_core.telemetry import DeliveryCounts, RunReport, SlowRow, StageClock, StageSeconds

_LOG = logging.getLogger(__name__)

# Bytes of a segment: one put to Longbow must stay below 32 MiB, and its rows carry a little more than the vector.
SEGMENT_BYTES = 20 * 2**20
_ROW_OVERHEAD = 512
# Of texts read and tokenized together: a few windows are on their way at a time, however long the texts are.
WINDOW_BYTES = 32 * 2**20

STAGES = tuple(stage.name for stage in fields(StageSeconds))
"""Stages in the order in which a row meets them."""


@dataclass(frozen=True)
class Piece:
    """Rows of a partition that go through the engine in one window, perhaps none.

    `untried` and `known` are rows that are set aside without a trial, as the store and as the quarantine have them.
    """

    run: "PartitionRun"
    rows: pa.Table
    untried: pa.Table
    known: pa.Table


@dataclass(frozen=True)
class RunContext:
    """What the partitions of a run share."""

    source: Source
    compute: Compute
    store: VectorStore
    generation: Generation
    settings: MaterializeSettings
    run_id: str
    clock: StageClock
    cancelled: threading.Event | None
    notify: Callable[[], None]

    @property
    def segment_rows(self) -> int:
        """The most rows of a segment."""
        of_bytes = SEGMENT_BYTES // (4 * self.compute.card.dimension + _ROW_OVERHEAD)
        return max(1, min(self.settings.segment_rows, of_bytes))


@dataclass
class PartitionRun:
    """Made by `PartitionRun.opened`. `folder` is a workspace on the store's disk, there until the partition is done.

    `pieces` is drawn from on the reading thread, what changes the store is called on
    the writing thread, in the order of the methods here."""

    run: RunContext
    partition: Partition
    changes: Changes
    folder: Path
    held: ExitStack
    note: str = ""
    remaining: int = 0
    put_off: int = 0
    quarantined: int = 0
    tally: Tally = field(default_factory=Tally)
    committed: int = 0
    content: Content = field(default_factory=lambda: Content(0, ""))
    seconds_total: float = 0.0
    pieces_out: int = 0
    pieces_back: int = 0
    all_out: bool = False
    untried: list[pa.Table] = field(default_factory=list)
    pending: list[pa.Table] = field(default_factory=list)

    @classmethod
    def opened(cls, run: RunContext, partition: Partition, database: duckdb.DuckDBPyConnection) -> "PartitionRun":
        """Locks the partition and finds what changed in it, in a database of `changes_database`.

        Raises:
            StoreLockedError: another run is writing it.
            SourceError, InputError, ConfigError, StoreError, RunCancelled: see `detect_changes`.
        """
        settings = run.settings
        with ExitStack() as stack:
            stack.enter_context(run.generation.locked(partition.key, run.run_id))
            folder = stack.enter_context(run.store.workspace(run.run_id))
            check_room(run.store.root, 0, settings.min_free_bytes, "the snapshot of changes")
            began = time.perf_counter()
            with run.clock.measuring("diff"):
                changes = detect_changes(
                    run.source,
                    partition,
                    run.generation,
                    folder,
                    on_empty=settings.on_empty,
                    on_duplicate=settings.on_duplicate,
                    on_missing=settings.on_missing,
                    memory_limit=settings.memory_limit,
                    database=database,
                    stop=Stop(run.cancelled),
                )
            opened = cls(run, partition, changes, folder, stack.pop_all())
            opened.tally.add_seconds({"diff": time.perf_counter() - began})
        opened._announce()
        return opened

    @property
    def to_write(self) -> int:
        """Rows that need a new version."""
        return self.changes.new + self.changes.changed + self.changes.stale

    def _announce(self) -> None:
        """Say at once what is ahead, above all that a changed model re-embeds everything."""
        if self.changes.stale:
            earlier = ", ".join(other.name for other in self.run.generation.siblings())
            self.note = (
                f"the model changed: {self.changes.stale} rows of {earlier} are embedded again "
                f"as {self.run.generation.name}"
            )
            _LOG.info(self.note)

    # Reading

    def pieces(self, room: Callable[[], int], budget: Callable[[int, bool], int]) -> Iterator[Piece]:
        """The rows of the snapshot in pieces of at most `room()` rows, at least one piece.

        `budget(rows, is_again)` says how many of `rows`, which were refused before or not, may be embedded yet. Rows
        that it leaves over remain for the next run, but not those that were refused: they stay in the quarantine.
        """
        given_up = GivenUp(
            self.run.store.quarantine, self.partition.key, self.run.compute.card, self.run.settings.max_attempts
        )
        held: tuple[pa.Table, pa.Table, pa.Table] | None = None
        none = pa.table({"id": pa.array([], pa.string()), "replaces": pa.array([], pa.int64())})
        for rows, is_again in self._in_turn(room, given_up):
            allowed = budget(rows.num_rows, is_again)
            if is_again:
                self.put_off += rows.num_rows - allowed
            else:
                self.remaining += rows.num_rows - allowed
            if not allowed:
                continue
            tried, untried, known = given_up.part(rows.slice(0, allowed))
            if held is not None:
                self.pieces_out += 1
                yield Piece(self, *held)
            held = tried, untried.select(["id", "replaces"]), known
        rows, untried, known = held if held is not None else (none, none, none)
        self.pieces_out += 1
        self.all_out = True
        yield Piece(self, rows, untried, known)

    def _in_turn(self, room: Callable[[], int], given_up: GivenUp) -> Iterator[tuple[pa.Table, bool]]:
        """The snapshot's rows, and whether they were refused before. With a budget such rows come last: it would be
        spent on them in each run, and the others never have their turn."""
        if self.run.settings.max_rows is None:
            yield from ((pa.Table.from_batches([batch]), False) for batch in self._snapshot(room))
            return
        for is_again in (False, True) if given_up.any_refused else (False,):
            for batch in self._snapshot(room):
                rows = pa.Table.from_batches([batch])
                yield rows.filter(pc.equal(given_up.refused(rows), is_again)), is_again

    def _snapshot(self, room: Callable[[], int]) -> Iterator[pa.RecordBatch]:
        """The snapshot in pieces, each few enough rows for a window."""
        if not self.to_write:
            return
        file = pq.ParquetFile(self.changes.changes_path)
        # An iterator of its own for each: what pyarrow read of a row group it keeps until its iterator ends.
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group)
            of_bytes = max(1, WINDOW_BYTES * size.num_rows // max(size.total_byte_size, 1))
            for batch in file.iter_batches(min(self.run.segment_rows, of_bytes), row_groups=[group]):
                first = 0
                while first < batch.num_rows:
                    piece = batch.slice(first, max(1, room()))
                    first += piece.num_rows
                    yield piece

    # Writing

    def begin(self) -> None:
        """Sets aside what cannot be embedded, and removes what is gone."""
        self._set_aside(self.changes.quarantined)
        if self.changes.deleted:
            file = pq.ParquetFile(self.changes.deleted_path)
            for batch in file.iter_batches(self.run.segment_rows):
                self.commit(delete_rows(pa.Table.from_batches([batch]), self.run.generation.schema))

    def commit(self, rows: pa.Table) -> None:
        """Makes rows durable as a segment."""
        if not rows.num_rows:
            return
        run = self.run
        check_room(run.store.root, rows.nbytes, run.settings.min_free_bytes, f"the commit of {rows.num_rows} rows")
        with self._writing():
            run.generation.write_segment(self.partition.key, rows, run.run_id)
        self.committed += rows.num_rows
        run.notify()

    def adopt(self, segment: WrittenSegment) -> None:
        """Commits rows that are in a segment's file already."""
        run, (entry,) = self.run, segment.footer.segments
        check_room(run.store.root, 0, run.settings.min_free_bytes, "the commit of a segment")
        with self._writing():
            run.generation.adopt(segment)
        self.committed += entry.upserts + entry.deletes
        run.notify()

    def refuse(self, rows: pa.Table) -> None:
        """Rows that the engine or the guard refused go to the quarantine."""
        self._set_aside(rows, self.run.compute.card.fingerprint)

    def give_up(self, untried: pa.Table, known: pa.Table) -> None:
        """Rows that earlier runs gave up stay in the quarantine."""
        self.untried.append(untried)
        self.run.store.quarantine.keep(known, run_id=self.run.run_id)

    def finish(self) -> None:
        """Everything is committed: retire what this run made superfluous, merge small files, let go of the lock."""
        with self.held:
            # Rows that were given up must not be found by what their text was before.
            for rows in self.untried:
                self.quarantined += rows.num_rows
                self.commit(delete_rows(rows.filter(rows["replaces"].is_valid()), self.run.generation.schema))
            self.content = content_of(self.run.generation, self.partition.key)
            self._tidy()

    def abandon(self) -> None:
        """The run ends before its time: let go of the lock."""
        self.held.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Counts the block's seconds as writing: the run's and the partition's."""
        began = time.perf_counter()
        with self.run.clock.measuring("write"):
            yield
        self.tally.add_seconds({"write": time.perf_counter() - began})

    def _set_aside(self, rows: pa.Table, fingerprint: str | None = None) -> None:
        self.run.store.quarantine.write(
            rows, run_id=self.run.run_id, partition_key=self.partition.key, fingerprint=fingerprint
        )
        self.quarantined += rows.num_rows

    def _tidy(self) -> None:
        run, key, generation = self.run, self.partition.key, self.run.generation
        if not self.remaining:  # else rows of the earlier model are still waiting for their turn
            for other in generation.siblings():
                if key in other.partitions():
                    self._retire(other.name, key)
        # A source is embedded whole or by partitions. Once that changed, rows of the other layout are nobody's to keep
        # up to date, and must not be found any more.
        outdated = [stored for stored in generation.partitions() if (stored == "") != (key == "")]
        if outdated:
            layout = "whole" if key else f"by partitions, {outdated[0]!r} among them"
            others = "; partitions that have not run since then have no rows" if key else ""
            dropped = f"{run.store.collection} was embedded {layout}: those rows are dropped{others}"
            _LOG.warning(dropped)
            self.note = f"{self.note}; {dropped}" if self.note else dropped
            for stored in outdated:
                self._retire(generation.name, stored)
        with self._writing():
            generation.compact_if_needed(key, run.settings.max_segments, self.content.count)
        if run.settings.on_missing == "keep" or self.remaining or self.put_off:
            self._keep_quarantined()
        run.store.quarantine.retain(key, run.run_id)

    def _keep_quarantined(self) -> None:
        """What earlier runs set aside and this one neither tried nor mended stays in the quarantine."""
        rows = self.run.store.quarantine.read(self.partition.key)
        rows = rows.filter(pc.not_equal(rows["run_id"], self.run.run_id))
        if rows.num_rows:
            mended = self.run.generation.live_ids(rows["id"].to_pylist(), self.partition.key)
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], pa.array(mended, pa.string()))))
            self.run.store.quarantine.keep(rows, run_id=self.run.run_id, is_counted=False)

    def _retire(self, generation_name: str, partition_key: str) -> None:
        try:
            self.run.store.retire(generation_name, partition_key)
        except StoreLockedError as error:  # another run is still at it: the next run retires
            _LOG.warning("outdated rows stay for now: %s", error)

    # Counting

    @property
    def all_back(self) -> bool:
        """Whether all of its pieces went through the engine."""
        return self.all_out and self.pieces_back == self.pieces_out

    def account(self, piece: FinishedPiece) -> None:
        """A piece came back from the engine: it counts, and its rows are pending unless they are in a segment."""
        self.tally += piece.tally
        if piece.rows is not None and piece.rows.num_rows:
            self.pending.append(piece.rows)

    def report(
        self, delivery: DeliveryCounts, before: EngineHealth, seconds_per_token: float, **whole: object
    ) -> RunReport:
        """The figures of this partition; `whole` are fields that only the run as a whole knows.

        `seconds_per_token` is what computing took in this run: texts of a batch go through together, and the time of
        one of them is its tokens' share.
        """
        run, changes, tally, engine = self.run, self.changes, self.tally, self.run.compute.engine
        health = run.compute.health
        report = RunReport(
            run_id=run.run_id,
            partition_key=self.partition.key,
            generation=run.generation.name,
            card=run.compute.card,
            engine=engine.name,
            device=engine.device,
            precision=engine.precision,
            tokenizer=run.compute.tokenizer,
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
            truncated=tally.truncated,
            cache_hits=tally.cache_hits,
            embedded=tally.embedded,
            tokens=tally.tokens,
            padded_tokens=tally.padded_tokens,
            rows_in_store=self.content.count,
            content_version=self.content.version,
            seconds_total=self.seconds_total,
            seconds=StageSeconds(**{stage: tally.seconds.get(stage, 0.0) for stage in STAGES}),
            delivery=delivery,
            note=self.note,
            cache=None if run.compute.cache is None else run.compute.cache.statistics(),
            retried=tally.retried,
            engine_failures=health.failed - before.failed,
            engine_problem=health.last_failure if health.failed > before.failed or health.is_impaired else "",
            standby_batches=health.batches - before.batches,
            invalid_text=changes.invalid_text,
            lengths=tuple(tally.lengths),
            slowest=tuple(SlowRow(row, tokens, tokens * seconds_per_token) for tokens, row in tally.longest),
            remaining=self.remaining,
        )
        return replace(report, **whole)  # type: ignore[arg-type]

"""One partition on its way through a run: what changed in it, pieces of its rows, their commits, and its report.

A run has one of these for each of its partitions, a few of them open at a time. In: a slice of the source and the
store. Out: pieces for the windows that go through the engine, segments in the store, and a `RunReport`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fletcher_core.batching import WINDOW
from fletcher_core.changes import Changes, detect_changes
from fletcher_core.embedder import Embedder
from fletcher_core.engines.failover import EngineHealth
from fletcher_core.errors import StoreLockedError
from fletcher_core.given_up import GivenUp
from fletcher_core.run_settings import MaterializeSettings
from fletcher_core.sources import Partition, Source
from fletcher_core.stop import Stop
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store.content import Content, content_of
from fletcher_core.store.room import check_room
from fletcher_core.store.rows import delete_rows
from fletcher_core.telemetry import LENGTH_EDGES, DeliveryCounts, RunReport, SlowRow, StageClock, StageSeconds
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.window import Window, finish_window

_LOG = logging.getLogger(__name__)

# Bytes of a segment: one put to Longbow must stay below 32 MiB, and its rows carry a little more than the vector.
SEGMENT_BYTES = 20 * 2**20
_ROW_OVERHEAD = 512
# Of texts read and tokenized together: a few windows are on their way at a time, however long the texts are.
WINDOW_BYTES = 32 * 2**20
# Rows of a report's table of the slowest.
_SLOWEST = 10

STAGES = tuple(stage.name for stage in fields(StageSeconds))
"""Stages in the order in which a row meets them."""


@dataclass(frozen=True)
class Piece:
    """Rows of a partition that go through the engine in one window, perhaps none; `last` says that no more follow.

    `untried` and `known` are rows that are set aside without a trial, as the store and as the quarantine have them.
    """

    run: "PartitionRun"
    rows: pa.Table
    untried: pa.Table
    known: pa.Table
    last: bool


@dataclass(frozen=True)
class RunContext:
    """What the partitions of a run share."""

    source: Source
    embedder: Embedder
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
        of_bytes = SEGMENT_BYTES // (4 * self.embedder.dimension + _ROW_OVERHEAD)
        return max(1, min(self.settings.segment_rows, of_bytes))


@dataclass
class PartitionRun:
    """Made by `PartitionRun.opened`. `pieces` is drawn from on the reading thread, what changes the store is called on
    the writing thread, in the order of the methods here."""

    run: RunContext
    partition: Partition
    changes: Changes
    held: ExitStack
    note: str = ""
    remaining: int = 0
    put_off: int = 0
    quarantined: int = 0
    truncated: int = 0
    cache_hits: int = 0
    embedded: int = 0
    retried: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    committed: int = 0
    content: Content = field(default_factory=lambda: Content(0, ""))
    seconds_total: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    longest: list[tuple[int, str]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=lambda: [0] * (len(LENGTH_EDGES) + 1))
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
            opened = cls(run, partition, changes, stack.pop_all())
            opened.seconds["diff"] = time.perf_counter() - began
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
            self.run.store.quarantine, self.partition.key, self.run.embedder.card, self.run.settings.max_attempts
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
                yield Piece(self, *held, last=False)
            held = tried, untried.select(["id", "replaces"]), known
        rows, untried, known = held if held is not None else (none, none, none)
        yield Piece(self, rows, untried, known, last=True)

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
            for batch in file.iter_batches(min(WINDOW, self.run.segment_rows, of_bytes), row_groups=[group]):
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
        began = time.perf_counter()
        with run.clock.measuring("write"):
            run.generation.write_segment(self.partition.key, rows, run.run_id)
        self._add("write", time.perf_counter() - began)
        self.committed += rows.num_rows
        run.notify()

    def refuse(self, rows: pa.Table) -> None:
        """Rows that the engine or the guard refused go to the quarantine."""
        self._set_aside(rows, self.run.embedder.card.fingerprint)

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
            self._tidy()
            self.content = content_of(self.run.generation, self.partition.key)

    def abandon(self) -> None:
        """The run ends before its time: let go of the lock."""
        self.held.close()

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
        generation.compact_if_needed(key, run.settings.max_segments)
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

    def account(self, window: Window, result: EmbeddedTexts, seconds: Mapping[str, float], share: float) -> pa.Table:
        """A piece came back from the engine: its rows for the store are pending; returns what was refused.

        `window` is the piece's own (`Window.piece`); `seconds` are those of the whole window by stage, and `share`, 0
        to 1, is how much of them fall to this piece.
        """
        began = time.perf_counter()
        with self.run.clock.measuring("guard"):
            finished = finish_window(window, result, self.run.embedder, self.run.generation.schema)
        self._add("guard", time.perf_counter() - began)
        if finished.rows.num_rows:
            self.pending.append(finished.rows)
        # Texts that an earlier piece of the window has too count there.
        own = window.own
        self.embedded += len(own)
        self.cache_hits += window.rows.num_rows - len(own)
        self.truncated += finished.truncated
        counts = result.token_counts[own]
        for place, number in zip(*np.unique(np.searchsorted(LENGTH_EDGES, counts), return_counts=True), strict=True):
            self.lengths[int(place)] += int(number)
        self.tokens += round(result.computed_tokens * share)
        self.padded_tokens += round(result.padded_tokens * share)
        self.retried += round(result.retried * share)
        for stage in ("read", "tokenize", "compute"):
            self._add(stage, seconds[stage] * share)
        self._note_longest(window, result, own)
        return finished.refused

    def _note_longest(self, window: Window, result: EmbeddedTexts, own: np.ndarray) -> None:
        counts = result.token_counts[own]
        for at in np.argsort(counts)[-_SLOWEST:]:
            tokens = int(counts[at])
            row = window.rows["id"][int(window.unique[own[at]])].as_py()
            self.longest.append((tokens, str(row)))
        self.longest = sorted(self.longest, reverse=True)[:_SLOWEST]

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def report(
        self, delivery: DeliveryCounts, before: EngineHealth, seconds_per_token: float, **whole: object
    ) -> RunReport:
        """The figures of this partition; `whole` are fields that only the run as a whole knows.

        `seconds_per_token` is what computing took in this run: texts of a batch go through together, and the time of
        one of them is its tokens' share.
        """
        run, changes, engine = self.run, self.changes, self.run.embedder.engine
        health = run.embedder.health
        report = RunReport(
            run_id=run.run_id,
            partition_key=self.partition.key,
            generation=run.generation.name,
            card=run.embedder.card,
            engine=engine.name,
            device=engine.device,
            precision=engine.precision,
            tokenizer=run.embedder.encoder.tokenizer.name,
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
            rows_in_store=self.content.count,
            content_version=self.content.version,
            seconds_total=self.seconds_total,
            seconds=StageSeconds(**{stage: self.seconds.get(stage, 0.0) for stage in STAGES}),
            delivery=delivery,
            note=self.note,
            cache=None if run.embedder.cache is None else run.embedder.cache.statistics(),
            retried=self.retried,
            engine_failures=health.failed - before.failed,
            engine_problem=health.last_failure if health.failed > before.failed or health.standing_in else "",
            standby_batches=health.batches - before.batches,
            invalid_text=changes.invalid_text,
            lengths=tuple(self.lengths),
            slowest=tuple(SlowRow(row, tokens, tokens * seconds_per_token) for tokens, row in self.longest),
            remaining=self.remaining,
        )
        return replace(report, **whole)  # type: ignore[arg-type]

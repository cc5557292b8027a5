"""The partitions of a run on their way through the engine, in one stream.

In come the slices of a source; windows of their rows are read and tokenized ahead, computed, and handed back to the
partitions that they are of; out go commits, and a report of each partition as soon as all of its rows are in the store.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from fletcher_core.batching import WINDOW
from fletcher_core.changes import changes_database
from fletcher_core.engines.failover import EngineHealth
from fletcher_core.errors import FletcherError, InputError, RunCancelled, StoreError, StoreLockedError
from fletcher_core.longbow.sender import DeliveryReport, Sender
from fletcher_core.partition_run import STAGES, WINDOW_BYTES, PartitionRun, Piece, RunContext
from fletcher_core.run_compute import FinishedPiece, Packed
from fletcher_core.sources import Partition
from fletcher_core.stop import Stop
from fletcher_core.telemetry import DeliveryCounts, Progress, RunReport
from fletcher_core.telemetry.context import in_this_context
from fletcher_core.telemetry.stages import observed

# Seconds that a window waits for rows of further partitions.
_FILL_SECONDS = 0.25
# Partitions of a window, and pieces of work that wait for the writer: each partition that is on its way keeps two files
# open, and some hundred have to be enough for a process.
_WINDOW_PIECES = 32
_WAITING_WORK = 32
# Equal parts of a run of which the report says how busy each stage was: so many bars fit the page of an asset.
SLICES = 20


@dataclass
class Stream:
    """The partitions of a run on their way through the engine. Reading happens on the embedder's reading thread,
    writing on one of its own, and everything else on the caller's."""

    context: RunContext
    partitions: Sequence[Partition]
    sender: Sender | None
    progress: Callable[[Progress], None] | None
    done: Callable[[RunReport], None]
    batched: int = 0
    finished: int = 0
    ended: int = 0
    drawn: int = 0
    drawn_again: int = 0
    all_opened: bool = False
    tokens: int = 0
    opened: list[PartitionRun] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)
    reports: list[RunReport] = field(default_factory=list)
    failed: list[FletcherError] = field(default_factory=list)
    timeline: list[tuple[float, float]] = field(default_factory=list)
    accounted: float = 0.0
    writing: deque[tuple[Future[None], int]] = field(default_factory=deque)
    broken: bool = False
    finishes: dict[str, Future[None]] = field(default_factory=dict)
    finishing: deque[tuple[PartitionRun, Future[None]]] = field(default_factory=deque)
    health: EngineHealth = field(init=False)
    last_commit: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.health = self.context.compute.health

    def run(self) -> list[RunReport]:
        """Everything, from the first change to the end of delivery."""
        stop = Stop(self.context.cancelled)
        with ThreadPoolExecutor(1, thread_name_prefix="fletcher-write") as writer:
            results = self.context.compute.run(self._windows(), self.context, stop, self._through)
            is_through = False
            try:
                for packed, finished in results:
                    self._account(packed, finished, writer)
                    self._report_finished()
                self._written()
                is_through = True
            except (FletcherError, KeyboardInterrupt) as error:
                # Finished work is kept, also when the run is asked to stop. Where the store failed it cannot be.
                if not isinstance(error, StoreError):
                    for run in self.opened:
                        self._commit(writer, run)
                    self._written()
                raise
            finally:
                results.close()
                writer.shutdown()
                self._report_finished(all_of_them=not is_through)
                self._tell()
        self._report_finished(last=True)
        self._tell()
        if self.failed:
            raise self._failure()
        return self.reports

    def abandon(self) -> None:
        """Lets go of the partitions that are still held."""
        for run in self.opened:
            run.abandon()

    # On the reading thread

    def _windows(self) -> Iterator[Packed]:
        """Windows of the snapshots."""
        pieces: list[Piece] = []
        size, waiting, began = 0, time.perf_counter(), time.perf_counter()

        def room() -> int:
            return self._timely_rows() - sum(piece.rows.num_rows for piece in pieces)

        for run in self._open_partitions():
            began = time.perf_counter()  # of reading, which finding the changes is not
            for piece in run.pieces(room, self._within_budget):
                if pieces and size + piece.rows.nbytes > WINDOW_BYTES:
                    yield self._packed(pieces, began)
                    pieces, size = [], 0
                    began = time.perf_counter()
                pieces.append(piece)
                size += piece.rows.nbytes
                late = time.perf_counter() - waiting >= _FILL_SECONDS
                if room() <= 0 or late or len(pieces) >= _WINDOW_PIECES:
                    yield self._packed(pieces, began)
                    pieces, size = [], 0
                    waiting = began = time.perf_counter()
        if pieces:
            yield self._packed(pieces, began)

    def _open_partitions(self) -> Iterator[PartitionRun]:
        context = self.context
        with (
            context.store.workspace(context.run_id) as folder,
            changes_database(memory_limit=context.settings.memory_limit, spill=folder / "spill") as database,
        ):
            for partition in self.partitions:
                Stop(context.cancelled).check()
                try:
                    run = PartitionRun.opened(context, partition, database)
                except (StoreLockedError, InputError) as error:
                    self.failed.append(error)
                    continue
                self.opened.append(run)
                if partition is self.partitions[-1]:
                    database.close()  # its memory is better used for embedding
                    self.all_opened = True
                yield run

    def _packed(self, pieces: list[Piece], began: float) -> Packed:
        tables = [piece.rows for piece in pieces if piece.rows.num_rows]
        rows = pa.concat_tables(tables, promote_options="permissive") if tables else None
        ended = time.perf_counter()
        observed(self.context.clock.busy)("read", began, ended)
        return Packed(rows, pieces, ended - began)

    def _within_budget(self, rows: int, is_again: bool) -> int:
        """Rows that were refused before get half of it at most: else those of one partition could keep the next ones
        from their turn in each run."""
        most = self.context.settings.max_rows
        if most is not None:
            left = min(most - self.drawn, most // 2 - self.drawn_again) if is_again else most - self.drawn
            rows = max(0, min(rows, left))
        self.drawn += rows
        self.drawn_again += rows if is_again else 0
        return rows

    def _timely_rows(self) -> int:
        """The most rows of the next window."""
        left = sum(run.to_write for run in self.opened) - self.drawn if self.all_opened else None
        rows = self.context.compute.window_rows(self._rate(), self.context.settings.commit_seconds, left)
        return min(rows, self.context.segment_rows)

    def _rate(self) -> float:
        """Texts a second through the engine so far."""
        return self.batched / max(self.context.clock.elapsed - self._first_diff(), 1e-9)

    def _first_diff(self) -> float:
        """Seconds before anything could be embedded."""
        return self.opened[0].tally.seconds["diff"] if self.opened else 0.0

    # On the caller's thread

    def _through(self, sequences: int) -> None:
        """A batch came back from the engine: tell how far the run is, ahead of the window that it belongs to."""
        self.batched += sequences
        self._tell()

    def _tell(self) -> None:
        if self.progress is None or not self.opened:
            return
        opened = list(self.opened)
        total = sum(run.to_write - run.remaining for run in opened)
        hits = sum(run.tally.cache_hits for run in opened)
        self.progress(
            Progress(
                embedded=min(self.batched + hits, total),
                total=total,
                texts_per_s=self._rate(),
                seconds=self.context.clock.elapsed,
                partitions=len(self.partitions),
                partitions_done=self.finished,
                committed=sum(run.committed for run in opened),
            )
        )

    def _account(self, packed: Packed, finished: Sequence[FinishedPiece | None], writer: ThreadPoolExecutor) -> None:
        """A window came back from the engine: its rows go to their partitions, and from there to the store."""
        elapsed = self._since_last_window(sum(done.tally.embedded for done in finished if done is not None))
        for piece, done in zip(packed.pieces, finished, strict=True):
            run = piece.run
            if run.partition.key not in self.begun:
                self.begun.add(run.partition.key)
                self._write(writer, run.begin)
            if done is not None:
                self.tokens += done.tally.tokens
                run.account(done)
                run.seconds_total += elapsed * done.share
                if done.segment is not None:
                    self._write(writer, run.adopt, done.segment)
                if done.refused.num_rows:
                    self._write(writer, run.refuse, done.refused)
            if piece.known.num_rows:
                self._write(writer, run.give_up, piece.untried, piece.known)
            run.pieces_back += 1
            due = time.perf_counter() - self.last_commit >= self.context.settings.commit_seconds
            pending = sum(table.num_rows for table in run.pending)
            if run.all_back or due or pending + WINDOW > self.context.segment_rows:
                self._commit(writer, run)
            if run.all_back:  # whichever is first: what waits for an earlier one would keep its files open
                self.finishes[run.partition.key] = self._write(writer, run.finish)
                self._in_turn()

    def _in_turn(self) -> None:
        """Partitions that are done are told of in their order."""
        opened = list(self.opened)
        while self.ended < len(opened) and (finish := self.finishes.pop(opened[self.ended].partition.key, None)):
            self.finishing.append((opened[self.ended], finish))
            self.ended += 1

    def _since_last_window(self, texts: int) -> float:
        """Seconds since the window before came back; `texts` of this one went through the engine."""
        now = self.context.clock.elapsed
        since, self.accounted = now - self.accounted, now
        if texts:
            before = self.timeline[-1][0] if self.timeline else self._first_diff()
            self.timeline.append((now, texts / max(now - before, 1e-9)))
        return since

    def _commit(self, writer: ThreadPoolExecutor, run: PartitionRun) -> None:
        if run.pending:
            rows, run.pending = pa.concat_tables(run.pending), []
            self.last_commit = time.perf_counter()
            self._write(writer, run.commit, rows, rows=rows.num_rows)

    def _write(
        self, writer: ThreadPoolExecutor, work: Callable[..., None], *what: object, rows: int = 0
    ) -> Future[None]:
        """Hands `work` to the writer. Never more rows than a segment's wait there, nor much else: memory and open files
        stay bounded. A failure ends the run, and nothing is done to the store after it."""
        self._written(self.context.segment_rows - rows, _WAITING_WORK)

        def unless_broken() -> None:
            if self.broken:
                raise CancelledError  # so that nobody takes it for done; what broke the writer is raised before it
            try:
                work(*what)
            except BaseException:
                self.broken = True
                raise

        future = writer.submit(in_this_context(unless_broken))
        self.writing.append((future, rows))
        return future

    def _written(self, room: int = -1, pieces: int = 0) -> None:
        """Waits until at most `room` rows in `pieces` of work are with the writer (below 0: nothing is); raises what
        went wrong there."""
        while self.writing:
            future, _ = self.writing[0]
            is_room = len(self.writing) <= pieces and sum(rows for _, rows in self.writing) <= room
            if not future.done() and is_room:
                return
            future.result()
            self.writing.popleft()

    def _report_finished(self, *, last: bool = False, all_of_them: bool = False) -> None:
        """Reports partitions whose rows are all in the store; the newest of them only as the `last`, after delivery, or
        where the run ends early, without waiting for that."""
        while len(self.finishing) > 1 or ((last or all_of_them) and self.finishing):
            run, future = self.finishing[0]
            if not future.done() or future.exception() is not None:
                return
            self.finishing.popleft()
            self.finished += 1
            whole: dict[str, object] = {}
            if last and not self.finishing:
                clock = self.context.clock
                run.seconds_total = clock.elapsed - sum(report.seconds_total for report in self.reports)
                delivery = self._delivered()
                send = clock.seconds("send") - sum(report.seconds.send for report in self.reports)
                run.tally.add_seconds({"send": send})
                shares = clock.shares(SLICES)
                whole = {
                    "timeline": tuple(self.timeline),
                    "stages": {stage: shares[stage] for stage in STAGES if stage in shares},
                    "seconds_with_delivery": clock.elapsed,
                }
            else:
                run.seconds_total = (
                    run.seconds_total or run.tally.seconds["diff"]
                )  # of which nothing had to be embedded
                delivery = self._counted(self.sender.report()) if self.sender is not None else DeliveryCounts()
            seconds_per_token = self.context.clock.seconds("compute") / max(self.tokens, 1)
            report = run.report(delivery, self.health, seconds_per_token, **whole)
            self.health = self.context.compute.health
            self.reports.append(report)
            self.done(report)

    def _delivered(self) -> DeliveryCounts:
        """Wait for Longbow, but neither longer than the settings say, nor past a cancellation, nor while it is down."""
        if self.sender is None:
            return DeliveryCounts()
        deadline = time.perf_counter() + self.context.settings.delivery_timeout
        while True:
            left = deadline - time.perf_counter()
            report = self.sender.drain(max(0.0, min(left, 0.5)))
            # Nor wait for the trial of a server that failed in this run. One that failed before it gets its chance.
            is_down = report.circuit == "open" or (report.circuit == "half-open" and report.unavailable)
            if report.is_complete or is_down or report.rejected or report.not_searchable or left <= 0:
                break
            cancelled = self.context.cancelled
            if cancelled is not None and cancelled.is_set():
                raise RunCancelled("the run was cancelled while it waited for Longbow; all rows are in the store")
        self.sender.close()  # now, not after the report: it must not begin another call that is then waited for
        return self._counted(report, problem=_problem(report))

    def _counted(self, report: DeliveryReport, problem: str = "") -> DeliveryCounts:
        """The sender's figures, without what earlier partitions' reports have of them already."""
        rows, earlier = report.rows, [done.delivery for done in self.reports]
        return DeliveryCounts(
            sent=report.rows_sent - sum(delivery.sent for delivery in earlier),
            bytes_sent=report.bytes_sent - sum(delivery.bytes_sent for delivery in earlier),
            retired=report.rows_retired - sum(delivery.retired for delivery in earlier),
            pending=sum(rows.get(state, 0) for state in ("pending", "sending", "sent")),
            applied=rows.get("applied", 0) + rows.get("searchable", 0),
            searchable=rows.get("searchable", 0),
            problem=problem,
        )

    def _failure(self) -> FletcherError:
        """The first of the partitions' errors, and how many others there are."""
        first = self.failed[0]
        if len(self.failed) > 1:
            return type(first)(f"{first} (and {len(self.failed) - 1} more of {len(self.partitions)} partitions failed)")
        return first


def _problem(report: DeliveryReport) -> str:
    """Why rows are not searchable, empty when all are."""
    said = report.unavailable or report.rejected or report.not_searchable
    if said or report.is_complete:
        return said
    if report.circuit != "closed":
        return "Longbow did not work before, and was still being tried again when delivery_timeout passed"
    return "Longbow was still busy when delivery_timeout passed"

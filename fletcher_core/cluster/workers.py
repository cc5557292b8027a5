"""Windows of a run on a Ray cluster: cut into shards, handed out to the crew, and accounted when they are done.

A worker has a shard at work and one that waits, so that it never waits itself.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any
from uuid import uuid4

from fletcher_core.cluster.connection import connect, ray_module
from fletcher_core.cluster.crew import SHARDS_AT_ONCE, Assignment, Crew
from fletcher_core.cluster.ray_settings import RaySettings
from fletcher_core.cluster.shard import Shard, ShardResult, WorkerFacts
from fletcher_core.engines.failover import EngineHealth
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.models import ModelCard
from fletcher_core.partition_run import RunContext
from fletcher_core.prefetch import Prefetched
from fletcher_core.run_compute import Finished, FinishedPiece, Packed
from fletcher_core.stop import Stop
from fletcher_core.telemetry.push import check_target
from fletcher_core.telemetry.tracing import headers_of_current

# Rows of a window at least, and of the first ones; at its end a run is cut so small that its workers end together.
_FEWEST_ROWS = 256


@dataclass(frozen=True)
class RemoteEngine:
    """The workers' engines as one, for reports."""

    name: str
    device: str
    precision: str


class RayWorkers:
    """Computes the windows of runs on a Ray cluster: give it to `materialize` as its embedder.

    Use it as a context manager: workers are started when the block begins, and end with it. Several runs may go through
    it, one after another.

    Args:
        settings: of the cluster.
        embedder: settings of `Embedder.load` for the workers; `threads` are the worker's `cpus` when not given.
        metrics: where workers push their metrics to, as `telemetry.push.Pusher` takes it.

    Raises (on entering, but for `metrics`):
        ConfigError: Ray is not installed or cannot be reached, the cluster has no room for a worker, `metrics` or
            `runtime_env` cannot work.
        ModelError, EngineError: what the first worker's `Embedder.load` raised.
    """

    def __init__(self, settings: RaySettings | None = None, *, metrics: str = "", **embedder: Any) -> None:
        check_target(metrics)
        self.settings = settings or RaySettings()
        self._embedder = embedder
        self._metrics = metrics
        self._crew: Crew | None = None
        self._is_open = self._is_ours = False
        self.cache = None

    # As an embedder

    @property
    def card(self) -> ModelCard:
        """The model's."""
        return self._facts.card

    @property
    def engine(self) -> RemoteEngine:
        """What the workers compute on, all of them together."""
        facts, there = self._facts, self._known.ready
        hosts = len({known.host for known in there})
        where = f"{hosts} hosts" if hosts > 1 else "1 host"
        device = f"Ray workers: {len(there) or self._known.asked} on {where} ({facts.device})"
        return RemoteEngine(facts.engine, device, facts.precision)

    @property
    def tokenizer(self) -> str:
        """Name of the workers' tokenizer."""
        return self._facts.tokenizer

    @property
    def health(self) -> EngineHealth:
        """Lost workers and failures of the workers' own engines; `batches` counts shards that were done again."""
        return self._crew.health if self._crew is not None else EngineHealth()

    def window_rows(self, rate: float, commit_seconds: float, left: int | None) -> int:
        """See `Compute`: what a worker does in half of `commit_seconds`, and less towards the end."""
        workers = max(1, len(self._known.ready))
        rows = max(_FEWEST_ROWS, int(rate / workers * commit_seconds / SHARDS_AT_ONCE))
        return rows if left is None else min(rows, max(_FEWEST_ROWS, left // (3 * workers)))

    @property
    def _known(self) -> Crew:
        if self._crew is None or self._crew.facts is None:
            raise ConfigError(
                "RayWorkers has no workers yet: use it as a context manager, `with RayWorkers(...) as w:`"
            )
        return self._crew

    @property
    def _facts(self) -> WorkerFacts:
        facts = self._known.facts
        assert facts is not None
        return facts

    # The block

    def __enter__(self) -> "RayWorkers":
        self._crew = None
        try:
            self._is_ours = connect(self.settings)
            self._crew = Crew(self.settings, self._embedder, self._metrics)
            self._crew.wait_for(1)
        except BaseException:
            self.close()
            raise
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, and the cluster if it was started for them."""
        self._is_open = False
        ray = ray_module()
        if ray.is_initialized():
            if self._crew is not None:
                self._crew.close()
            if self._is_ours:
                ray.shutdown()
        self._is_ours = False

    def wait_for(self, workers: int) -> None:
        """Waits until so many workers have loaded their model; a run needs one, and takes the others as they come.

        Raises:
            ConfigError: they did not come in `start_timeout` seconds.
        """
        self._known.wait_for(workers)

    # Windows

    def run(
        self, windows: Iterator[Packed], context: RunContext, stop: Stop, through: Callable[[int], None]
    ) -> Generator[Finished]:
        """See `Compute`: in the order in which workers are done."""
        if not self._is_open:
            raise ConfigError("the block of RayWorkers is over, and its workers with it: embed inside of the block")
        crew, call = self._known, uuid4().hex
        idle_since = time.monotonic()
        with Prefetched(self._shards(windows, context, call), 1) as ahead:
            try:
                while not ahead.over or crew.given_back or crew.is_at_work:
                    stop.check()
                    yield from self._hand_out(crew, ahead)
                    for work, result in crew.hear():
                        through(sum(piece.tally.embedded for piece in result.pieces))
                        yield work.packed, self._accounted(work, result, context)
                    if crew.ready:
                        idle_since = time.monotonic()
                    elif time.monotonic() - idle_since > self.settings.start_timeout:
                        raise EngineError(
                            f"all Ray workers were lost, and none came in {self.settings.start_timeout:.0f} s "
                            f"({crew.wanted}); the last one: {crew.last_failure}"
                        )
            finally:
                crew.drop(call)

    def _shards(self, windows: Iterator[Packed], context: RunContext, call: str) -> Iterator[Assignment]:
        """On the reading thread: windows become shards, and their rows Ray's."""
        trace = headers_of_current()
        for number, packed in enumerate(windows):
            pieces = [piece for piece in packed.pieces if piece.rows.num_rows]
            sizes = tuple(piece.rows.num_rows for piece in pieces)
            plans = tuple(
                context.generation.plan_segment(piece.run.partition.key, size, context.run_id, piece.run.folder)
                for piece, size in zip(pieces, sizes, strict=True)
            )
            rows = None if packed.rows is None else ray_module().put(packed.rows)
            without_rows = [replace(piece, rows=piece.rows.schema.empty_table()) for piece in packed.pieces]
            have_rows = tuple(piece.rows.num_rows > 0 for piece in packed.pieces)
            shard = Shard(number, context.run_id, call, sizes, plans, trace)
            yield Assignment(shard, replace(packed, rows=None, pieces=without_rows), have_rows, rows)

    def _hand_out(self, crew: Crew, ahead: Prefetched[Assignment]) -> Iterator[Finished]:
        """Gives shards to workers that have room, those of lost ones first; yields those without rows as they are."""
        while crew.has_room and (crew.given_back or not ahead.over):
            work = crew.given_back.popleft() if crew.given_back else ahead.take(wait=False)
            if work is None:
                return
            if work.rows is None:
                yield work.packed, [None] * len(work.packed.pieces)
            else:
                crew.hand(work)

    def _accounted(self, work: Assignment, result: ShardResult, context: RunContext) -> list[FinishedPiece | None]:
        """The pieces in their places; the worker's seconds are told to the run's clock as if they ended now."""
        now = time.perf_counter()
        for span in result.spans:
            context.clock.busy(span.stage, now + span.began, now + span.ended)
        pieces = iter(result.pieces)
        finished = [next(pieces) if has_rows else None for has_rows in work.have_rows]
        for piece in finished:
            if piece is not None:
                piece.tally.add_seconds({"read": work.packed.read_seconds}, piece.share)
        return finished

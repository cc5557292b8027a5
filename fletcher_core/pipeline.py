"""Bring a source's vectors in the store up to date, and send them on their way to Longbow.

source -> changes -> tokens -> batches -> engine -> guard -> store -> Longbow. Each window of rows goes through on its
own: reading and tokenizing run ahead on one thread, the engine computes, another thread commits, the sender delivers.
Several partitions go through in one stream: a window may hold rows of some of them, so that small partitions fill the
engine's batches as one large one does.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from uuid import uuid4

from fletcher_core.embedder import Embedder
from fletcher_core.errors import ConfigError
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.sender import Sender, SenderSettings
from fletcher_core.partition_run import SEGMENT_BYTES, RunContext
from fletcher_core.run_compute import Compute, LocalCompute
from fletcher_core.run_settings import MaterializeSettings
from fletcher_core.sources import Partition, Source, metadata_schema
from fletcher_core.store import VectorStore
from fletcher_core.store.recent import RecentSegments
from fletcher_core.stream import Stream
from fletcher_core.telemetry import Progress, RunReport, StageClock
from fletcher_core.telemetry.logs import log_ids
from fletcher_core.telemetry.run_figures import describe_run, log_run, run_span
from fletcher_core.telemetry.stage_spans import stages_of

__all__ = ["MaterializeSettings", "materialize", "materialize_partitions"]

# Some full segments: what the sender falls behind by.
_RECENT_BYTES = 3 * SEGMENT_BYTES


def materialize(
    source: Source,
    *,
    embedder: Embedder | Compute,
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
        embedder: what computes: an `Embedder` in this process, or `fletcher_core.cluster.RayWorkers` on other machines.
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
    (report,) = materialize_partitions(
        source,
        [partition or Partition()],
        embedder=embedder,
        store=store,
        longbow=longbow,
        settings=settings,
        sender_settings=sender_settings,
        progress=progress,
        cancelled=cancelled,
        run_id=run_id,
        log_figures=log_figures,
    )
    return report


def materialize_partitions(
    source: Source,
    partitions: Sequence[Partition],
    *,
    embedder: Embedder | Compute,
    store: VectorStore,
    longbow: LongbowClient | None = None,
    settings: MaterializeSettings | None = None,
    sender_settings: SenderSettings | None = None,
    committed: Callable[[RunReport], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: threading.Event | None = None,
    run_id: str | None = None,
    log_figures: bool = True,
) -> list[RunReport]:
    """`materialize` for several slices of a source in one stream through the engine, in the order given.

    A partition that another run is writing, or whose rows a policy refuses, costs the others nothing: they are done,
    and its error is raised at the end. The seconds of a window with rows of several partitions are shared among them
    by their tokens. The last report's figures of delivery, timeline and stages are the whole run's; those of the others
    have none of the latter two, and of the first what was known when they were committed.

    Args:
        partitions: at least one, each key once.
        committed: called on this thread with the report of each partition as soon as all of its rows are in the store
            (of the last one: and Longbow was waited for).
        The others are those of `materialize`.

    Returns:
        The reports, in the order of `partitions`.

    Raises:
        Those of `materialize`. What was committed before stays, and was reported.
        ConfigError: no partition was named, or one twice.
    """
    if not partitions:
        raise ConfigError("no partition was named: give at least one, Partition() for the whole source")
    twice = [key for key, count in Counter(partition.key for partition in partitions).items() if count > 1]
    if twice:
        raise ConfigError(f"partition {twice[0]!r} is named twice: give each partition once")
    settings = settings or MaterializeSettings()
    run_id = run_id or uuid4().hex
    compute = LocalCompute(embedder) if isinstance(embedder, Embedder) else embedder
    generation = store.generation(compute.card, metadata_schema(source), settings.vector_type)
    label = partitions[0].key if len(partitions) == 1 else f"{partitions[0].key}...{partitions[-1].key}"
    with ExitStack() as stack:
        stack.enter_context(log_ids(run_id=run_id))
        span = stack.enter_context(run_span(run_id, store.collection, label, compute))
        clock = StageClock(also=stack.enter_context(stages_of(span)))
        sender = None
        if longbow is not None:
            generation.recent = RecentSegments(_RECENT_BYTES)
            sender = Sender(generation, longbow, sender_settings or SenderSettings(), busy=clock.busy)
            stack.callback(sender.close)
            sender.start()
        notify = sender.notify if sender is not None else _nobody
        context = RunContext(source, compute, store, generation, settings, run_id, clock, cancelled, notify)

        def done(report: RunReport) -> None:
            if log_figures:
                log_run(report)
            if committed is not None:
                committed(report)

        stream = Stream(context, partitions, sender, progress, done)
        stack.callback(stream.abandon)
        reports = stream.run()
        if len(reports) == 1:
            describe_run(span, reports[0])
        return reports


def _nobody() -> None:
    """Nothing is delivered."""

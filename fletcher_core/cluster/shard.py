"""What goes out to a worker and what comes back: the rows of a window, and the segments that were written of them."""

from dataclasses import dataclass

from fletcher_core.engines.failover import EngineHealth
from fletcher_core.models import ModelCard
from fletcher_core.run_compute import FinishedPiece
from fletcher_core.store.planned import PlannedSegment


@dataclass(frozen=True)
class Shard:
    """A window's rows travel beside this, those of its pieces one after another.

    Attributes:
        number: of the window in its run, for messages.
        run_id: the run's.
        call: names the call of `RayWorkers.run` that it is of, of which a run may make several.
        sizes: rows of each piece.
        plans: where each piece's rows for the store are to be written.
        trace: headers of the run's span, see `telemetry.tracing`.
    """

    number: int
    run_id: str
    call: str
    sizes: tuple[int, ...]
    plans: tuple[PlannedSegment, ...]
    trace: dict[str, str]


@dataclass(frozen=True)
class Span:
    """`stage` was at work from `began` to `ended`, in seconds before the shard's end (so both are at most 0)."""

    stage: str
    began: float
    ended: float


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard's pieces, when its stages were busy, and how the worker's engine is."""

    pieces: tuple[FinishedPiece, ...]
    spans: tuple[Span, ...]
    health: EngineHealth


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker says of itself once its model is loaded. `host` names the machine, `node` is Ray's name of it, and
    `version` is Fletcher's."""

    card: ModelCard
    engine: str
    device: str
    precision: str
    tokenizer: str
    host: str
    node: str
    version: str

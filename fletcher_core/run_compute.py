"""Where the windows of a run are computed: `Compute` is what a run needs of that, `LocalCompute` an engine in reach.

In: rows of some partitions that go through the engine together. Out, for each partition's piece of them: rows to
commit, or a segment that was written elsewhere; rows for the quarantine; counts.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from fletcher_core.batching import WINDOW
from fletcher_core.cache import VectorCache
from fletcher_core.embedder import Embedder
from fletcher_core.engines.failover import EngineHealth
from fletcher_core.models import ModelCard
from fletcher_core.stop import Stop
from fletcher_core.store.planned import WrittenSegment
from fletcher_core.tally import Tally, finish_piece, pieces_of
from fletcher_core.telemetry import StageClock
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.window import Window, open_window

if TYPE_CHECKING:
    from fletcher_core.partition_run import Piece, RunContext


@dataclass(frozen=True)
class Packed:
    """Rows that go through the engine together: `rows` are those of the `pieces` one after another, with the columns of
    `Changes.changes_path`; `read_seconds` is how long they took to read."""

    rows: pa.Table | None
    pieces: list["Piece"]
    read_seconds: float = 0.0


@dataclass(frozen=True)
class FinishedPiece:
    """What became of a piece: `rows` for the store, or the `segment` that they were written to already; `refused` rows
    for the quarantine; the `tally`; the `share` of the window's work that fell to it, 0 to 1."""

    tally: Tally
    refused: pa.Table
    rows: pa.Table | None = None
    segment: WrittenSegment | None = None
    share: float = 1.0


Finished = tuple[Packed, list[FinishedPiece | None]]  # None for a piece without rows


class _Engine(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...


class Compute(Protocol):
    """What turns the windows of a run into rows of the store. The attributes are those of `Embedder`."""

    @property
    def card(self) -> ModelCard: ...
    @property
    def engine(self) -> _Engine: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def health(self) -> EngineHealth: ...
    @property
    def cache(self) -> VectorCache | None: ...

    def window_rows(self, rate: float, commit_seconds: float, left: int | None) -> int:
        """The most rows of the next window.

        Args:
            rate: texts a second of the run so far, 0 at its beginning.
            commit_seconds: after so many, what is finished should be in the store.
            left: rows that are still to be drawn; None as long as nobody knows.
        """
        ...

    def run(
        self, windows: Iterator[Packed], context: "RunContext", stop: Stop, through: Callable[[int], None]
    ) -> Generator[Finished]:
        """Each window with what became of its pieces, in any order.

        Args:
            windows: drawn from on a thread of its own, some of them ahead.
            context: the run's.
            stop: ends the work.
            through: called on this thread with the number of texts that are through since the last call.

        Raises:
            EngineError: the device failed, whatever the text.
            StoreError: a segment cannot be written.
            RunCancelled, DeadlineExceeded: `stop` says so.
        """
        ...


# The first windows, while nobody knows how fast the engine is.
_FEW_ROWS = 64


@dataclass
class LocalCompute:
    """The embedder of this process: rows come back, and are committed by the run."""

    embedder: Embedder
    _accounted: dict[str, float] = field(default_factory=dict)

    @property
    def card(self) -> ModelCard:
        """See `Embedder`."""
        return self.embedder.card

    @property
    def engine(self) -> _Engine:
        """See `Embedder`."""
        return self.embedder.engine

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer in use."""
        return self.embedder.encoder.tokenizer.name

    @property
    def health(self) -> EngineHealth:
        """See `Embedder`."""
        return self.embedder.health

    @property
    def cache(self) -> VectorCache | None:
        """See `Embedder`."""
        return self.embedder.cache

    def window_rows(self, rate: float, commit_seconds: float, left: int | None) -> int:
        """See `Compute`: what is through within a part of `commit_seconds`, as fast as the run is."""
        return max(_FEW_ROWS, min(WINDOW, int(rate * commit_seconds / 4)))

    def run(
        self, windows: Iterator[Packed], context: "RunContext", stop: Stop, through: Callable[[int], None]
    ) -> Generator[Finished]:
        """See `Compute`."""

        def texts() -> Iterator[tuple[tuple[Packed, Window | None], pa.ChunkedArray]]:
            with closing(windows):  # type: ignore[type-var]
                for packed in windows:
                    if packed.rows is None:
                        yield (packed, None), pa.chunked_array([], pa.string())
                    else:
                        window = open_window(packed.rows)
                        yield (packed, window), window.rows["text"].take(pa.array(window.unique))

        clock = context.clock
        with closing(self.embedder.stream(texts(), stop, through, busy=clock.busy)) as results:
            for (packed, window), result in results:
                seconds = self._since_last(clock) | {"read": packed.read_seconds}
                if window is None:
                    yield packed, [None] * len(packed.pieces)
                else:
                    yield packed, self._finished(packed, window, result, seconds, context)

    def _finished(
        self, packed: Packed, window: Window, result: EmbeddedTexts, seconds: dict[str, float], context: "RunContext"
    ) -> list[FinishedPiece | None]:
        schema, clock = context.generation.schema, context.clock
        finished: list[FinishedPiece | None] = []
        for own, share in pieces_of(window, [piece.rows.num_rows for piece in packed.pieces], result):
            if not own.rows.num_rows:
                finished.append(None)
                continue
            before = clock.seconds("guard")
            with clock.measuring("guard"):
                joined, tally = finish_piece(own, result, self.embedder, schema, share)
            tally.add_seconds(seconds, share)
            tally.add_seconds({"guard": clock.seconds("guard") - before})
            finished.append(FinishedPiece(tally, joined.refused, rows=joined.rows, share=share))
        return finished

    def _since_last(self, clock: StageClock) -> dict[str, float]:
        """Seconds of the embedder's stages since the window before came back."""
        now = {stage: clock.seconds(stage) for stage in ("tokenize", "compute")}
        since = {stage: value - self._accounted.get(stage, 0.0) for stage, value in now.items()}
        self._accounted = now
        return since

"""The figures of one materialization. Plain ints and floats, so that whoever shows them can plot them over time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fletcher_core.models import ModelCard

if TYPE_CHECKING:
    from fletcher_core.cache import CacheStatistics  # which is counted, and so imports from this package


# Upper edges, in tokens, of the bins of `RunReport.lengths`; one more bin has what is longer.
LENGTH_EDGES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class SlowRow:
    """A row whose text took long: `seconds` of computing fall to its `tokens`."""

    id: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class StageSeconds:
    """Seconds that each stage was busy. Stages overlap: the sum is more than the wall time.

    diff: the source scan and change detection; read: the snapshot of rows to embed; tokenize and compute; guard: the
    last look at the vectors, and their way to the rows they belong to; write: committing segments; send: putting them
    to Longbow and reading them back.
    """

    diff: float = 0.0
    read: float = 0.0
    tokenize: float = 0.0
    compute: float = 0.0
    guard: float = 0.0
    write: float = 0.0
    send: float = 0.0


@dataclass(frozen=True)
class DeliveryCounts:
    """How far rows have come on their way to Longbow at the end of the run.

    Of this run: `sent` rows and `bytes_sent` (Arrow buffers), `retired` (superseded versions hidden from scans there).
    Of the whole generation, segment by segment: `pending` rows still wait, `applied` were read back from the server,
    `searchable` were read back and are indexed. `problem` says what stands in the way, '' when nothing does.
    """

    sent: int = 0
    bytes_sent: int = 0
    retired: int = 0
    pending: int = 0
    applied: int = 0
    searchable: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a run is: rows of `total` that are embedded, of which `committed` are in the store; texts per second;
    seconds.

    Of a run over several `partitions`, `total` are the rows of those that were looked at so far; `partitions_done` are
    committed and reported.
    """

    embedded: int
    total: int
    texts_per_s: float
    seconds: float
    committed: int = 0
    partitions: int = 1
    partitions_done: int = 0


@dataclass(frozen=True)
class RunReport:
    """What one materialization of one partition did.

    Rows of the source fall into `new`, `changed`, `stale` (embedded by another model before) and `unchanged`, or are
    left out: `null_text`, `empty_text`, `null_ids`, `quarantined`. `deleted` rows left the store. `duplicate_ids` are
    further rows of an id with the same text: counted once above. `invalid_text` rows had bytes that are no UTF-8; their
    ids are among the `quarantined`. `cache_hits` rows took their vector from the store or
    from an equal text of their window, `embedded` texts went through the engine. `timeline` are (seconds since start,
    texts/s since the one before); `stages` says of each stage during which share of each equal part of the run,
    `seconds_with_delivery` long, it was busy, 0 to 1. `cache` are the counters of the embedder's cache in memory
    since it was made, None without one. `retried` texts got their vectors from another engine in float32, as the
    first one's were not sound. `lengths` counts the embedded texts by their tokens, in the bins of `LENGTH_EDGES`;
    `slowest` are the rows that took longest, the slowest first. `remaining` rows were left to following runs, as
    `MaterializeSettings.max_rows` says. `content_version` is equal as long as the model, the rows and their texts are.
    `engine_failures` is how often the engine failed in this run, with why in
    `engine_problem` the last time, and `standby_batches` what another engine computed in its place.
    """

    run_id: str
    partition_key: str
    generation: str
    card: ModelCard
    engine: str
    device: str
    precision: str
    tokenizer: str
    new: int
    changed: int
    stale: int
    unchanged: int
    deleted: int
    null_text: int
    empty_text: int
    null_ids: int
    duplicate_ids: int
    quarantined: int
    truncated: int
    cache_hits: int
    embedded: int
    tokens: int
    padded_tokens: int
    rows_in_store: int
    seconds_total: float
    seconds: StageSeconds
    delivery: DeliveryCounts
    timeline: tuple[tuple[float, float], ...] = ()
    stages: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seconds_with_delivery: float = 0.0
    note: str = ""
    cache: "CacheStatistics | None" = None
    retried: int = 0
    engine_failures: int = 0
    engine_problem: str = ""
    standby_batches: int = 0
    invalid_text: int = 0
    lengths: tuple[int, ...] = ()
    slowest: tuple[SlowRow, ...] = ()
    remaining: int = 0
    content_version: str = ""

    @property
    def cache_hit_rate(self) -> float:
        """Share of the rows to write whose vector was known or an equal text's, 0 to 1."""
        rows = self.cache_hits + self.embedded
        return self.cache_hits / rows if rows else 0.0

    @property
    def skipped(self) -> int:
        """Source rows without a text or an id: counted, not embedded."""
        return self.null_text + self.empty_text + self.null_ids

    @property
    def texts_per_s(self) -> float:
        """Texts through the engine over the whole run's wall time, delivery's tail excluded."""
        return self.embedded / self.seconds_total if self.seconds_total > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens, without padding, over the whole run's wall time."""
        return self.tokens / self.seconds_total if self.seconds_total > 0 else 0.0

    @property
    def tokenize_share(self) -> float:
        """Busy time of the tokenizer as a share of the run's wall time, delivery's tail excluded."""
        return self.seconds.tokenize / self.seconds_total if self.seconds_total > 0 else 0.0

    @property
    def padding_share(self) -> float:
        """Share of the tokens computed that were padding, 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

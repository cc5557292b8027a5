"""What rows came to that went through the engine together: their rows for the store, and counts that add up.

In: a piece of a window and the vectors of its texts. Out: rows to commit, rows for the quarantine, and a `Tally`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from fletcher_core.embedder import Embedder
from fletcher_core.telemetry import LENGTH_EDGES
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.window import FinishedWindow, Window, finish_window

# Rows of a report's table of the slowest.
_SLOWEST = 10


@dataclass
class Tally:
    """Counts of a partition's rows, or of some of them; `+=` adds another's.

    `embedded` texts went through the engine, `cache_hits` rows shared one or brought a vector along; `tokens` and
    `padded_tokens` are what was computed; `truncated` texts were cut and `retried` ones computed by another engine;
    `lengths` counts texts by the bins of `LENGTH_EDGES`; `longest` are (tokens, id) of the longest texts, most first;
    `seconds` is by stage.
    """

    embedded: int = 0
    cache_hits: int = 0
    truncated: int = 0
    retried: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    lengths: list[int] = field(default_factory=lambda: [0] * (len(LENGTH_EDGES) + 1))
    longest: list[tuple[int, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __iadd__(self, other: "Tally") -> "Tally":
        for name in ("embedded", "cache_hits", "truncated", "retried", "tokens", "padded_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lengths = [mine + its for mine, its in zip(self.lengths, other.lengths, strict=True)]
        self.longest = sorted(self.longest + other.longest, reverse=True)[:_SLOWEST]
        self.add_seconds(other.seconds)
        return self

    def add_seconds(self, seconds: Mapping[str, float], share: float = 1.0) -> None:
        """Adds that share of `seconds`, by stage."""
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value * share


def pieces_of(window: Window, sizes: Sequence[int], result: EmbeddedTexts) -> Iterator[tuple[Window, float]]:
    """A window's pieces of so many rows, one after another, each with its share of the whole's work, by its tokens."""
    tokens, offset = max(int(result.token_counts.sum()), 1), 0
    for size in sizes:
        own = window.piece(offset, size)
        offset += size
        yield own, 1.0 if len(sizes) == 1 else int(result.token_counts[own.own].sum()) / tokens


def finish_piece(
    window: Window, result: EmbeddedTexts, embedder: Embedder, schema: pa.Schema, share: float
) -> tuple[FinishedWindow, Tally]:
    """Joins the rows of a piece with their vectors, and counts them.

    Args:
        window: the piece's own, see `Window.piece`.
        result: of the texts of the whole window.
        embedder: that computed them.
        schema: the generation's.
        share: of the whole window's work that falls to this piece, 0 to 1.
    """
    finished = finish_window(window, result, embedder, schema)
    own = window.own  # texts that an earlier piece of the window has too count there
    counts = result.token_counts[own]
    tally = Tally(
        embedded=len(own),
        cache_hits=window.rows.num_rows - len(own),
        truncated=finished.truncated,
        retried=round(result.retried * share),
        tokens=round(result.computed_tokens * share),
        padded_tokens=round(result.padded_tokens * share),
    )
    for place, number in zip(*np.unique(np.searchsorted(LENGTH_EDGES, counts), return_counts=True), strict=True):
        tally.lengths[int(place)] += int(number)
    for at in np.argsort(counts)[-_SLOWEST:]:
        row = window.rows["id"][int(window.unique[own[at]])].as_py()
        tally.longest.append((int(counts[at]), str(row)))
    tally.longest.sort(reverse=True)
    return finished, tally

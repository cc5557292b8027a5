"""What the engine computes together of several callers' requests, and what came back of it."""

from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from opentelemetry import trace
from opentelemetry.trace import Span

from fletcher_core.embed_call import Vectors
from fletcher_core.embedder import Embedder
from fletcher_core.engines.bisection import Computed
from fletcher_core.errors import FletcherError
from fletcher_core.guard import sound_vectors
from fletcher_core.text_window import EmbeddedTexts, finish_texts
from fletcher_core.tokenizers import EncodedTexts, TextEncoder
from fletcher_core.tokenizers.request import Column
from fletcher_core.tokens import Int64, TokenBatch

Kind = Literal["documents", "queries", "tokens"]


@dataclass(eq=False)
class Request:
    """`texts` (or `tokens`, by `kind`) of one caller on their way; `size` estimated tokens of which `left` are not yet
    `taken`; `parts` are what came back, in order of `first`."""

    texts: "Column | TokenBatch"
    kind: Kind
    size: int
    deadline: float
    future: "Future[EmbeddedTexts]"
    arrived: float
    span: Span = field(default_factory=trace.get_current_span)
    is_probe: bool = False
    taken: int = 0
    left: int = 0
    parts: dict[int, EmbeddedTexts] = field(default_factory=dict)
    done: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    def answer(self, result: EmbeddedTexts) -> None:
        """The caller's future gets `result`; nothing where it was cancelled meanwhile."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: FletcherError) -> None:
        """The caller's future raises `error`; nothing where it was cancelled meanwhile."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True)
class Part:
    """The texts from `first` up to `last` of a request."""

    request: Request
    first: int
    last: int


class Window:
    """What the engine computes together: parts of requests, encoded, and what came back of them."""

    def __init__(self, parts: list[Part], texts: EncodedTexts, embedder: Embedder, span: Span) -> None:
        self.parts = parts
        self.texts = texts
        lengths = texts.sequences.lengths
        some = np.flatnonzero(lengths)  # invalid texts have no tokens, and the engine takes no empty ones
        batching = embedder.engine.batching
        self.plan: list[Int64] = [some[rows] for rows in batching.plan(lengths[some])] if len(some) else []
        self.vectors = np.empty((len(lengths), embedder.dimension), np.float32)
        self.sound = np.zeros(len(lengths), bool)
        if len(some) < len(lengths):
            self.vectors[lengths == 0] = np.nan
        self.failed: dict[int, str] = {}
        # The first text and the first sequence of each part, and of each sequence its part.
        self.starts = np.concatenate([[0], np.cumsum([part.last - part.first for part in parts])])
        self.bounds = np.searchsorted(texts.text_of, self.starts)
        self._part_of = np.repeat(np.arange(len(parts)), np.diff(self.bounds))
        self._remaining = np.bincount(self._part_of[some], minlength=len(parts))
        self._normalized = embedder.guard.normalized
        self.span = span

    @property
    def is_done(self) -> bool:
        """Whether all of it has come back."""
        return not self._remaining.any()

    def without_tokens(self) -> list[int]:
        """Parts of which nothing goes to the engine."""
        return np.flatnonzero(self._remaining == 0).tolist()

    def accept(self, rows: Int64, computed: Computed) -> list[int]:
        """Take what came back for the sequences `rows`; the parts that are complete by it."""
        self.vectors[rows] = computed.vectors
        self.sound[rows] = sound_vectors(computed.vectors, self._normalized)
        for row, reason in computed.failed.items():
            self.failed[int(rows[row])] = reason
        before = self._remaining > 0
        self._remaining -= np.bincount(self._part_of[rows], minlength=len(self.parts))
        return np.flatnonzero(before & (self._remaining == 0)).tolist()

    def needs_second_look(self, at: int) -> bool:
        """Whether the part `at` has texts that are in chunks, are invalid, or have no sound vector."""
        part, rows = self.parts[at], self._rows(at)
        return rows.stop - rows.start != part.last - part.first or not self.sound[rows].all()

    def as_computed(self, at: int) -> EmbeddedTexts:
        """What came of the part `at`, whose sequences are its texts."""
        rows, texts = self._rows(at), slice(int(self.starts[at]), int(self.starts[at + 1]))
        tokens = int(self.texts.sequences.lengths[rows].sum())
        vectors = self.vectors[rows]
        if 2 * len(vectors) < len(self.vectors):  # a view would keep all of the window for as long as it is kept
            vectors = vectors.copy()
        counts, cut = self.texts.token_counts[texts], self.texts.cut[texts]
        return EmbeddedTexts(vectors, counts, cut, self.sound[rows], (), self._failed_of(rows), tokens, tokens)

    def look_again(self, at: int, embedder: Embedder) -> EmbeddedTexts:
        """What comes of the part `at` when another engine has computed what is not sound, and chunks are joined."""
        rows = self._rows(at)
        texts = self.texts.part(int(self.starts[at]), int(self.starts[at + 1]))
        vectors, sound = self.vectors[rows].copy(), self.sound[rows].copy()
        tokens = int(texts.sequences.lengths.sum())
        return finish_texts(texts, vectors, sound, self._failed_of(rows), tokens, embedder.guard)

    def _rows(self, at: int) -> slice:
        """The sequences of the part `at`."""
        return slice(int(self.bounds[at]), int(self.bounds[at + 1]))

    def _failed_of(self, rows: slice) -> dict[int, str]:
        return {row - rows.start: said for row, said in self.failed.items() if rows.start <= row < rows.stop}


def encode(parts: list[Part], encoders: Mapping[Kind, TextEncoder]) -> EncodedTexts:
    """The texts of all parts in their order; neighbours that are read alike together."""
    encoded: list[EncodedTexts] = []
    start = 0
    while start < len(parts):
        kind, stop = parts[start].request.kind, start + 1
        while stop < len(parts) and parts[stop].request.kind == kind:
            stop += 1
        slices = [_slice(part) for part in parts[start:stop]]
        lists = [texts for texts in slices if isinstance(texts, list)]
        if len(lists) == len(slices):
            encoded.append(encoders[kind].encode([text for texts in lists for text in texts]))
        else:
            encoded += [
                _as_encoded(texts) if isinstance(texts, TokenBatch) else encoders[kind].encode(texts)
                for texts in slices
            ]
        start = stop
    return EncodedTexts.joined(encoded)


def _slice(part: Part) -> "Column | TokenBatch":
    texts = part.request.texts
    if isinstance(texts, TokenBatch):
        return texts.take(np.arange(part.first, part.last))
    return texts[part.first : part.last]


def _as_encoded(tokens: TokenBatch) -> EncodedTexts:
    lengths = tokens.lengths.astype(np.int32)
    return EncodedTexts(tokens, np.arange(len(tokens)), lengths, np.zeros(len(tokens), bool))


def nothing(dimension: int) -> EmbeddedTexts:
    """Of a request without texts."""
    none: npt.NDArray[np.bool_] = np.zeros(0, bool)
    vectors: Vectors = np.zeros((0, dimension), np.float32)
    return EmbeddedTexts(vectors, np.zeros(0, np.int32), none, none, (), {}, 0, 0)


def joined(parts: list[EmbeddedTexts]) -> EmbeddedTexts:
    """What came of a request's parts, in their order, as one."""
    if len(parts) == 1:
        return parts[0]
    before = np.concatenate([[0], np.cumsum([len(part.vectors) for part in parts])[:-1]]).tolist()
    return EmbeddedTexts(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.token_counts for part in parts]),
        np.concatenate([part.cut for part in parts]),
        np.concatenate([part.sound for part in parts]),
        tuple(
            replace(bad, row=bad.row + rows) for part, rows in zip(parts, before, strict=True) for bad in part.invalid
        ),
        {row + rows: said for part, rows in zip(parts, before, strict=True) for row, said in part.failed.items()},
        sum(part.computed_tokens for part in parts),
        sum(part.padded_tokens for part in parts),
        sum(part.retried for part in parts),
    )

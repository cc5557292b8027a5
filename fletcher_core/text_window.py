"""A window of texts on its way through the engine: its batches go out in order, and their vectors come back so.

In: encoded texts. Out: batches for the engine; then one vector a text, with what is wrong with it where something is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fletcher_core.batching import Batching
from fletcher_core.engines.bisection import Computed
from fletcher_core.guard import Guard, sound_vectors
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.metrics import OUTPUT_INVALID
from fletcher_core.tokenizers import EncodedTexts, InvalidText
from fletcher_core.tokens import Int32, TokenBatch

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddedTexts:
    """Vectors of `n` texts: `vectors` float32 [n, dim]; `token_counts` int32 [n] before any cut; `cut` and `sound` bool
    [n] (too long for the model; finite and of unit norm); `invalid` the texts that cannot be tokenized and never
    reached the engine; `failed`, by row, what the engine said of texts that it failed on; `computed_tokens` and
    `padded_tokens` what the engine ran; `retried` texts whose vectors another engine gave."""

    vectors: Vectors
    token_counts: Int32
    cut: npt.NDArray[np.bool_]
    sound: npt.NDArray[np.bool_]
    invalid: tuple[InvalidText, ...]
    failed: dict[int, str]
    computed_tokens: int
    padded_tokens: int
    retried: int = 0


class TextWindow:
    """See above.

    Args:
        texts: what the window holds.
        batching: of the engine that it goes to.
        dimension: of the vectors.
        target: float32 [sequences, dimension], where they go; None for anywhere.
    """

    def __init__(self, texts: EncodedTexts, batching: Batching, dimension: int, target: Vectors | None):
        self.texts = texts
        lengths = texts.sequences.lengths
        some = np.flatnonzero(lengths)  # null and invalid texts have no tokens, and the engine takes no empty ones
        self.plan = [some[rows] for rows in batching.plan(lengths[some])]
        self.padded_tokens = sum(batching.computed_tokens(lengths[rows]) for rows in self.plan)
        if target is None or len(target) != len(lengths):  # chunks have vectors of their own, before they are joined
            target = np.empty((len(lengths), dimension), dtype=np.float32)
        if len(some) < len(lengths):
            target[lengths == 0] = np.nan
        self.vectors = target
        self.returned = 0
        self._failed: dict[int, str] = {}  # sequence -> what the engine said

    def batches(self) -> Iterator[TokenBatch]:
        """What the engine is to compute."""
        return (self.texts.sequences.take(rows) for rows in self.plan)

    @property
    def done(self) -> bool:
        """Whether all of it has come back."""
        return self.returned == len(self.plan)

    def accept(self, computed: Computed) -> None:
        """Take what came back for the oldest of the batches that are out."""
        rows = self.plan[self.returned]
        self.vectors[rows] = computed.vectors
        for row, reason in computed.failed.items():
            self._failed[int(rows[row])] = reason
        self.returned += 1

    def finish(self, guard: Guard, stop: Stop) -> EmbeddedTexts:
        """Have the vectors looked at, and chunks joined.

        Raises:
            RunCancelled, DeadlineExceeded: `stop` says so while another engine computes what was not sound.
        """
        sound = sound_vectors(self.vectors, guard.normalized)
        return finish_texts(self.texts, self.vectors, sound, self._failed, self.padded_tokens, guard, stop)


def finish_texts(
    texts: EncodedTexts,
    vectors: Vectors,
    sound: npt.NDArray[np.bool_],
    failed: dict[int, str],
    padded_tokens: int,
    guard: Guard,
    stop: Stop = NEVER,
) -> EmbeddedTexts:
    """Sequences -> texts: what is not sound is computed again, chunks are joined.

    Args:
        texts: m sequences of n texts.
        vectors: float32 [m, dim], written to where another engine computes them anew.
        sound: bool [m], which of them are finite and, where normalized, of unit length.
        failed: by sequence, what the engine said of those that it failed on.
        padded_tokens: that the engine ran for them.
        guard: the other engine.
        stop: of its work.

    Raises:
        RunCancelled, DeadlineExceeded: `stop` says so.
    """
    retried = 0
    if not sound.all():
        again = np.flatnonzero(~sound & (texts.sequences.lengths > 0))
        if len(again):
            OUTPUT_INVALID.inc(len(again) - len(failed))  # those that failed have none
            rescued = guard.retry(texts.sequences, vectors, again, stop)
            retried = len(np.unique(texts.text_of[rescued]))
            sound[rescued] = True
            failed = {row: said for row, said in failed.items() if not sound[row]}
    pooled = pool_chunks(vectors, texts, guard.normalized)
    if pooled is not vectors:  # a text is as sound as its chunks, and as their mean
        of_all = np.ones(len(pooled), bool)
        np.logical_and.at(of_all, texts.text_of, sound)
        sound = of_all & sound_vectors(pooled, guard.normalized)
    return EmbeddedTexts(
        vectors=pooled,
        token_counts=texts.token_counts,
        cut=texts.cut,
        sound=sound,
        invalid=texts.invalid,
        failed={int(texts.text_of[row]): reason for row, reason in failed.items()},
        computed_tokens=len(texts.sequences.ids),
        padded_tokens=padded_tokens,
        retried=retried,
    )


def pool_chunks(vectors: Vectors, texts: EncodedTexts, normalized: bool) -> Vectors:
    """Sequence vectors [m, dim] -> text vectors [n, dim]: the mean over a text's chunks, weighted by their tokens."""
    count = len(texts.token_counts)
    if len(vectors) == count:
        return vectors
    weights = texts.sequences.lengths.astype(np.float32)[:, None]
    starts = np.searchsorted(texts.text_of, np.arange(count))
    with np.errstate(invalid="ignore"):  # a text without tokens
        mean = np.add.reduceat(vectors * weights, starts, axis=0) / np.add.reduceat(weights, starts, axis=0)
    pooled: Vectors = mean.astype(np.float32, copy=False)
    if normalized:
        pooled /= np.linalg.norm(pooled, axis=1, keepdims=True).astype(np.float32)
    # A text of one chunk keeps its vector to the last bit.
    single = np.bincount(texts.text_of, minlength=count) == 1
    pooled[single] = vectors[starts[single]]
    return pooled

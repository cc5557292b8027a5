"""The texts of one request, in whichever form they were given, and what became of each of them."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from fletcher_core.embed_call import Vectors
from fletcher_core.embedder import Embedder
from fletcher_core.errors import InputError
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.known import submit_unknown
from fletcher_core.service.window import Kind
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.tokens import TokenBatch, cumulative


@dataclass(frozen=True)
class ItemError:
    """Why an item has no vector: `code` is empty_text, invalid_text, invalid_tokens, too_long, engine_failed or
    invalid_vector."""

    message: str
    code: str

    @property
    def is_ours(self) -> bool:
        """Whether nothing is wrong with the item itself."""
        return self.code in ("engine_failed", "invalid_vector")


@dataclass(frozen=True)
class Items:
    """What is to be embedded: `texts`, or `tokens` taken as they are; `bad` items are known not to be computable."""

    texts: list[str]
    tokens: TokenBatch | None = None
    bad: dict[int, ItemError] = field(default_factory=dict)

    @classmethod
    def of(cls, given: "str | list[str] | list[int] | list[list[int]]", embedder: Embedder, most: int) -> "Items":
        """A text, texts, the token ids of one text, or of several.

        Raises:
            InputError: there is nothing, or more than `most`.
        """
        if isinstance(given, str):
            given = [given]
        if not given:
            raise InputError("the input is an empty list: give at least one text")
        texts: list[str] = [item for item in given if isinstance(item, str)]
        ids: list[int] = [item for item in given if isinstance(item, int)]
        sequences: list[list[int]] = [ids] if ids else [item for item in given if isinstance(item, list)]
        count = len(texts) or len(sequences)
        if count > most:
            raise InputError(f"the input has {count} items; this service takes up to {most} in one request")
        return cls(texts, bad=_without_words(texts)) if texts else cls._of_tokens(sequences, embedder)

    @classmethod
    def _of_tokens(cls, sequences: Sequence[list[int]], embedder: Embedder) -> "Items":
        vocabulary, most = embedder.package.architecture.vocab_size, embedder.encoder.max_length
        bad: dict[int, ItemError] = {}
        for at, ids in enumerate(sequences):
            if not ids:
                bad[at] = ItemError("has no token ids", "invalid_tokens")
            elif len(ids) > most:  # before all else: it may be millions
                bad[at] = ItemError(f"has {len(ids)} token ids and the limit is {most}", "too_long")
            elif not 0 <= min(ids) <= max(ids) < vocabulary:
                said = f"has token ids outside 0 to {vocabulary - 1}: they must be of this model's own tokenizer"
                bad[at] = ItemError(said, "invalid_tokens")
        kept = [[] if at in bad else ids for at, ids in enumerate(sequences)]
        packed = np.array([token for ids in kept for token in ids], np.int32)
        return cls([], TokenBatch(packed, cumulative(np.array([len(ids) for ids in kept]))), bad)

    def __len__(self) -> int:
        return len(self.texts) if self.tokens is None else len(self.tokens)

    def submit(self, batcher: Batcher, seconds: float, kind: Kind = "documents") -> "Future[EmbeddedTexts]":
        """Have them embedded within `seconds`.

        Raises:
            Overloaded: as `Batcher.submit`.
        """
        if self.tokens is not None:
            return batcher.submit(self.tokens, seconds=seconds, kind="tokens")
        return submit_unknown(batcher, self.texts, seconds=seconds, kind=kind)

    def errors(self, result: EmbeddedTexts, embedder: Embedder, *, refuse_cut: bool = False) -> dict[int, ItemError]:
        """By item, in ascending order, why it has no good vector. With `refuse_cut` the policy for texts that are too
        long is "error", whatever the embedder's is."""
        if result.sound.all() and not result.cut.any():
            return self.bad
        errors: dict[int, ItemError] = {}
        for row in np.flatnonzero(~result.sound).tolist():
            errors[row] = ItemError(f"has no vector: it {embedder.verdict}", "invalid_vector")
        for row, said in result.failed.items():
            errors[row] = ItemError(f"cannot be computed: {said}", "engine_failed")
        for invalid in result.invalid:
            errors[invalid.row] = ItemError(invalid.reason, "invalid_text")
        if refuse_cut or embedder.encoder.long_text == "error":
            limit = embedder.encoder.max_length
            for row in np.flatnonzero(result.cut).tolist():
                said = f"has {result.token_counts[row]} tokens and the limit is {limit}: shorten it"
                errors[row] = ItemError(said, "too_long")
        return dict(sorted((errors | self.bad).items()))


def _without_words(texts: list[str]) -> dict[int, ItemError]:
    """A vector of nothing is near to anything short; tables' empty texts have none either."""
    said = ItemError("has no visible character", "empty_text")
    return {at: said for at, text in enumerate(texts) if not text or text.isspace()}


def shortened(vectors: Vectors, dimension: int | None, normalize: bool) -> Vectors:
    """The first `dimension` elements of each of `vectors` (float32 [n, dim]), of unit length if `normalize`."""
    if dimension is None or dimension == vectors.shape[1]:
        return vectors
    return of_unit_length(vectors[:, :dimension]) if normalize else vectors[:, :dimension]


def of_unit_length(vectors: Vectors) -> Vectors:
    """float32 [n, dim] -> the same directions; a vector without a length becomes NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

"""Token sequences of different lengths in one flat buffer: what the tokenizer makes and what the engines take.

No padding and no Python object per text; an engine that needs rectangles pads for itself.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenBatch:
    """Packed sequences: `ids` int32 [T], `cu_seqlens` int64 [n+1]; k is `ids[cu_seqlens[k] : cu_seqlens[k+1]]`."""

    ids: Int32
    cu_seqlens: Int64

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> Int64:
        """Tokens of each sequence, int64 [n]."""
        return np.diff(self.cu_seqlens)

    def take(self, order: Int64) -> "TokenBatch":
        """The sequences `order` (int64 [m]) in that order, packed anew."""
        if len(self) == len(order) == 1:  # itself, without a copy: a caller with one text waits for it
            return self
        return self.spans(self.cu_seqlens[order], self.lengths[order])

    def spans(self, starts: Int64, lengths: Int64) -> "TokenBatch":
        """The `lengths` (int64 [m]) tokens of `ids` from each of `starts` (int64 [m]) on, packed anew."""
        cu_seqlens = cumulative(lengths)
        # Position of each output token in `ids`: its span's start there plus its place within the span.
        shift = np.repeat(starts - cu_seqlens[:-1], lengths)
        return TokenBatch(self.ids[np.arange(cu_seqlens[-1]) + shift], cu_seqlens)


def cumulative(lengths: npt.NDArray[np.integer]) -> Int64:
    """`lengths` [n] -> their running sum with a leading zero, int64 [n+1]."""
    result = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=result[1:])
    return result

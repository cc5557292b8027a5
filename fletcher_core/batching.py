"""Which sequences run together: sorted by real token count, cut by a token budget.

Sorting a window keeps sequences of like length together, so little of a batch is padding; the budget counts tokens and
not rows, so every batch costs about the same time and memory.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fletcher_core.token_budget import round_up
from fletcher_core.tokens import Int64, cumulative

# Texts tokenized and sorted together. Large enough that sorting leaves little padding, small enough that the engine
# gets its first batch at once.
WINDOW = 2048
# A batch with this share of its bucket in use is not worth splitting: each dispatch has a cost of its own.
_NEARLY_FULL = 0.75


@dataclass(frozen=True)
class Batching:
    """How one engine wants sequences put together; a value that can be sent to another process.

    Args:
        layout: "padded" computes a rectangle as wide as the longest sequence; "packed" computes the tokens there are;
            "bucketed" computes tokens rounded up to one of `buckets`.
        token_budget: the most tokens of a batch, with what fills it up; a longer sequence gets a batch of its own.
        multiple: of "padded", what a width is rounded up to, in tokens.
        buckets: of "bucketed", sizes in tokens, ascending.
    """

    layout: Literal["padded", "packed", "bucketed"]
    token_budget: int
    multiple: int = 1
    buckets: tuple[int, ...] = ()

    def plan(self, lengths: npt.NDArray[np.integer]) -> list[Int64]:
        """Which sequences run together, and in which order.

        Args:
            lengths: tokens of each sequence, [n], none 0.

        Returns:
            Index arrays, int64, that cover each sequence exactly once.
        """
        if self.layout == "bucketed":
            return plan_buckets(lengths, self.token_budget, self.buckets)
        return plan_batches(lengths, self.token_budget, self.multiple)

    def computed_tokens(self, lengths: npt.NDArray[np.integer]) -> int:
        """Tokens that are computed for one batch of sequences of these `lengths`, with what fills it up."""
        if self.layout == "bucketed":
            return round_up(int(lengths.sum()), self.buckets)
        if self.layout == "packed":
            return int(lengths.sum())
        return len(lengths) * -(-int(lengths.max()) // self.multiple) * self.multiple


def plan_batches(lengths: npt.NDArray[np.integer], token_budget: int, multiple: int = 1) -> list[Int64]:
    """Partition sequences 0..n-1 into batches, longest first.

    Args:
        lengths: tokens of each sequence, [n].
        token_budget: the most tokens of one batch, padding included; a longer sequence gets a batch of its own.
        multiple: a padded length is rounded up to this many tokens.

    Returns:
        Index arrays, int64, that cover each sequence exactly once.
    """
    if len(lengths) == 1:  # whose caller waits for it
        return [np.zeros(1, dtype=np.int64)]
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    widths = -(-lengths[order].astype(np.int64) // multiple) * multiple
    batches, start = [], 0
    while start < len(order):
        rows = max(1, token_budget // max(int(widths[start]), 1))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def plan_buckets(lengths: npt.NDArray[np.integer], token_budget: int, buckets: Sequence[int]) -> list[Int64]:
    """Partition sequences 0..n-1 into batches for an engine without padding, each filled to one of its sizes.

    Batches of `token_budget` as long as there is enough for one. What is left goes into the bucket that holds it if
    that gets nearly full, otherwise into smaller ones that do: little of what the device computes is filling.

    Args:
        lengths: tokens of each sequence, [n].
        token_budget: the most tokens of one batch, one of `buckets`; a longer sequence gets a batch of its own.
        buckets: tokens, ascending.

    Returns:
        Index arrays, int64, none empty, longest first, that cover each sequence exactly once.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    ends = cumulative(lengths[order])
    sizes = [bucket for bucket in buckets if bucket <= token_budget]
    batches, start = [], 0
    while start < len(order):
        left = int(ends[-1] - ends[start])
        size = sizes[min(bisect_left(sizes, left), len(sizes) - 1)]
        if left < _NEARLY_FULL * size:
            size = sizes[max(bisect_left(sizes, left) - 1, 0)]
        stop = max(int(np.searchsorted(ends, ends[start] + size, side="right")) - 1, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches

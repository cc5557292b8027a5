"""Which sequences run together: sorted by real token count, cut by a token budget.

Sorting a window keeps sequences of like length together, so little of a batch is padding; the budget counts tokens and
not rows, so every batch costs about the same time and memory.
"""

import numpy as np
import numpy.typing as npt

from fletcher_core.tokens import Int64


def plan_batches(lengths: npt.NDArray[np.integer], token_budget: int, multiple: int = 1) -> list[Int64]:
    """Partition sequences 0..n-1 into batches, longest first.

    Args:
        lengths: tokens of each sequence, [n].
        token_budget: the most tokens of one batch, padding included; a longer sequence gets a batch of its own.
        multiple: a padded length is rounded up to this many tokens.

    Returns:
        Index arrays, int64, that cover each sequence exactly once.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    widths = -(-lengths[order].astype(np.int64) // multiple) * multiple
    batches, start = [], 0
    while start < len(order):
        rows = max(1, token_budget // max(int(widths[start]), 1))
        batches.append(order[start : start + rows])
        start += rows
    return batches

"""The sizes of batch that an engine starts with: found by running each once warm, smallest first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fletcher_core.admission import Admission, Verdict
from fletcher_core.token_budget import TokenBudget


@dataclass(frozen=True)
class Sizes:
    """`buckets` in tokens, all of which ran; the `budget` over them, as far as it could settle on these runs; and the
    best rate seen."""

    buckets: tuple[int, ...]
    budget: TokenBudget
    tokens_per_second: float


def warm_up(
    candidates: Sequence[int], run: Callable[[int], list[float]], admission: Admission, target_seconds: float
) -> Sizes:
    """Run buckets in turn until one takes longer than `target_seconds` or there is no room for the next.

    Args:
        candidates: tokens, ascending; the first one always runs.
        run: runs a full bucket some times and returns the seconds of each; it also tells `admission` what it needed.
        admission: asked before each.
        target_seconds: what a batch should take at most.
    """
    seconds: dict[int, list[float]] = {}
    for bucket in candidates:
        if seconds and admission.admit(bucket, 0) is not Verdict.RUN:
            break
        seconds[bucket] = run(bucket)
        if min(seconds[bucket]) > target_seconds:
            break
    budget = TokenBudget(tuple(seconds), target_seconds)
    # The budget climbs as it would at work, on these very measurements.
    for _ in range(20 * len(seconds)):
        if budget.settled:
            break
        for measured in seconds[budget.current]:
            budget.observe(budget.current, measured)
    best = max(bucket / min(measured) for bucket, measured in seconds.items())
    return Sizes(tuple(seconds), budget, best)

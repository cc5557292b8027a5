"""Whether the device's memory has room for one more batch: asked before the batch goes up, learned from earlier ones.

In: what the device says of its memory (injected, so nothing here knows a device), and what each batch needed. Out: run
it, wait for what is in flight, or split it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Protocol

from fletcher_core.errors import ConfigError

DECAY = 0.02  # share by which an estimate sinks towards each observation below it
RECOVERY = 1.25  # times the room of the failure: so much must there be before its size is tried again at once
BACKOFF = 32  # the batches until it is tried again anyway double up to this many times
GOOD = 8  # times the first patience: after so many batches without a failure the next one is waited for as the first


class DeviceMemory(Protocol):
    """A device's memory, in bytes; `active` and `peak` count what is in use, without the allocator's cache."""

    @property
    def limit(self) -> int:
        """What we allow ourselves to use at most."""
        ...

    def active(self) -> int:
        """What is in use now: weights, and whatever the batches in flight hold."""
        ...

    def peak(self) -> int:
        """The most that was in use since `reset_peak`."""
        ...

    def reset_peak(self) -> None:
        """Let `peak` begin anew, at what is in use now."""
        ...

    def release_cache(self) -> None:
        """Give what the allocator keeps for reuse back to the system."""
        ...


class Verdict(Enum):
    """What to do with a batch."""

    RUN = "run"
    WAIT = "wait"  # something is in flight whose end frees memory: ask again then
    SPLIT = "split"  # nothing is in flight and it will not fit: run it in parts


class Admission:
    """Admits batches to a device so that their estimated needs, with a margin, stay within its limit.

    The estimate of a size that ran is the most that it needed, sinking slowly to what it needs of late; of any other, a
    line through the sizes that ran, raised above all of them; before any ran, the prior. While something is in flight,
    what is in use and what it is estimated to need at most both count, whichever is more.

    A size that the device refused is not admitted for some batches. Then one batch tries it again: what had taken the
    memory may be gone.

    For one thread, the engine's: nothing here is locked.
    """

    def __init__(
        self, memory: DeviceMemory, bytes_per_token: float, margin: float = 0.10, *, relax_after: int = 200
    ) -> None:
        """Begin with nothing in flight and the weights loaded.

        Args:
            memory: the device's figures.
            bytes_per_token: what a batch needs per token above the weights, from the architecture; used until the first
                observation.
            margin: added to each estimate, as a share of it.
            relax_after: batches admitted after a failure until its size is tried again.

        Raises:
            ConfigError: `bytes_per_token` or `relax_after` is not positive, or `margin` is negative.
        """
        if not bytes_per_token > 0 or relax_after < 1 or not margin >= 0:
            raise ConfigError(
                f"must be positive: bytes_per_token={bytes_per_token}, relax_after={relax_after}, "
                f"or at least 0: margin={margin}"
            )
        self._memory = memory
        self._prior = bytes_per_token
        self._margin = margin
        self._needs: dict[int, float] = {}  # tokens of a bucket -> bytes
        self._idle = memory.active()  # in use with nothing in flight, when last seen
        self._failed_tokens: int | None = None
        self._failed_room = 0  # bytes between idle and the limit at that failure
        self._admitted = 0  # batches since that failure
        self._patience = self._relax_after = relax_after  # batches until the failed size is tried again
        self._retried: int | None = None  # the failed size that was tried again last
        self._behind: int | None = None  # tokens that went up after the batch that tries it, while that has not ended

    def observe(self, tokens: int, needed_bytes: int) -> None:
        """Learn what a batch needed.

        Args:
            tokens: its tokens, with the padding up to its bucket; at least 1.
            needed_bytes: the peak while it ran, less what was in use before it; of a batch that ran beside others this
                is too much, so measure one that ran alone.
        """
        needed, known = float(max(needed_bytes, 0)), self._needs.get(tokens, 0.0)
        self._needs[tokens] = max(needed, known + DECAY * (needed - known))
        if self._failed_tokens is not None and tokens >= self._failed_tokens:
            self._forget_failure()

    @contextmanager
    def measuring(self, tokens: int) -> Iterator[None]:
        """Observe a batch of `tokens` that runs, alone and to its end, inside the block; not if the block raises."""
        before = self._memory.active()
        self._memory.reset_peak()
        yield
        self.observe(tokens, self._memory.peak() - before)

    def estimate(self, tokens: int) -> float:
        """Bytes that a batch of `tokens` needs above what is in use before it, without the margin."""
        if tokens in self._needs:
            return self._needs[tokens]
        return self._extrapolated(tokens, self._needs)

    def admit(self, tokens: int, in_flight_tokens: int, *, divisible: bool = True) -> Verdict:
        """Decide on a batch.

        Args:
            tokens: its tokens, with the padding up to its bucket.
            in_flight_tokens: those of all batches that were sent up and have not ended; 0 if there are none.
            divisible: whether it can be split; one sequence cannot, and runs when nothing is in flight, whatever the
                estimate: the device decides.

        Returns:
            RUN, WAIT (only with something in flight) or SPLIT (only with nothing in flight and a divisible batch).
        """
        if in_flight_tokens == 0:
            self._idle = self._memory.active()
        # Batches end in the order in which they went up.
        if self._behind is not None and in_flight_tokens <= self._behind:
            self._forget_failure()
        if self._fits(tokens, in_flight_tokens):
            return self._run(tokens, in_flight_tokens)
        if in_flight_tokens > 0:
            return Verdict.WAIT
        self._memory.release_cache()
        self._idle = self._memory.active()
        if not divisible or self._fits(tokens, 0):
            return self._run(tokens, 0)
        self._doubt(tokens)
        return Verdict.SPLIT

    def allocation_failed(self, tokens: int) -> None:
        """Learn that the device refused memory; the allocator's cache is released.

        From now on fewer than `tokens` are admitted, in flight and new together, until there is a quarter more room
        between the limit and what is in use when idle, or a batch of that many ran after all. One may try after
        `relax_after` batches; each time that this proves too early, only after twice as many.

        Args:
            tokens: those of the batch that failed and of the others that were in flight.
        """
        self._memory.release_cache()
        self._failed_tokens = tokens if self._failed_tokens is None else min(tokens, self._failed_tokens)
        self._failed_room = self._room()
        self._admitted, self._behind = 0, None
        if self._retried is not None and self._failed_tokens <= self._retried:
            self._patience = min(2 * self._patience, BACKOFF * self._relax_after)
            self._retried = None  # several batches of the same try may fail: that counts once

    def _fits(self, tokens: int, in_flight_tokens: int) -> bool:
        if self._failed_tokens is not None:
            if self._room() > max(RECOVERY * self._failed_room, 0):
                self._forget_failure()
            elif tokens + in_flight_tokens >= self._failed_tokens and not self._may_retry():
                return False
        in_use = self._memory.active()
        if in_flight_tokens > 0:
            in_use = max(in_use, self._idle + self._with_margin(in_flight_tokens))
        return in_use + self._with_margin(tokens) <= self._memory.limit

    def _run(self, tokens: int, in_flight_tokens: int) -> Verdict:
        """Count an admitted batch, and see whether it is the one that tries the failed size again."""
        if self._failed_tokens is not None:
            if self._behind is not None:
                self._behind += tokens
            elif self._may_retry() and tokens + in_flight_tokens >= self._failed_tokens:
                self._behind, self._retried = 0, self._failed_tokens
            self._admitted += 1
        elif self._retried is not None:
            self._admitted += 1
            if self._admitted >= GOOD * self._relax_after:  # the retry was not too early: forget it
                self._retried, self._patience = None, self._relax_after
        return Verdict.RUN

    def _may_retry(self) -> bool:
        return self._behind is None and self._admitted >= self._patience

    def _forget_failure(self) -> None:
        self._failed_tokens = self._behind = None
        self._admitted = 0

    def _with_margin(self, tokens: int) -> int:
        return int(self.estimate(tokens) * (1 + self._margin)) + 1

    def _room(self) -> int:
        return self._memory.limit - self._idle

    def _doubt(self, tokens: int) -> None:
        """Let an estimate that forbids its own size sink towards what the others say.

        Nothing would ever correct it, as that size no longer runs.
        """
        if tokens in self._needs:
            others = {size: needed for size, needed in self._needs.items() if size != tokens}
            sunk = max(self._extrapolated(tokens, others), (1 - DECAY) * self._needs[tokens])
            self._needs[tokens] = min(self._needs[tokens], sunk)

    def _extrapolated(self, tokens: int, needs: Mapping[int, float]) -> float:
        """Bytes at `tokens` on the line through all of `needs` (tokens -> bytes), raised until none is above it.

        At least what any smaller size needs; and left of all sizes, where the line may fall below zero, at least the
        share of what the smallest needs.
        """
        if not needs:
            return self._prior * tokens
        mean_size = sum(needs) / len(needs)
        mean_needed = sum(needs.values()) / len(needs)
        spread = sum((size - mean_size) ** 2 for size in needs)
        covariance = sum((size - mean_size) * (needed - mean_needed) for size, needed in needs.items())
        slope = max(covariance / spread, 0.0) if spread else mean_needed / mean_size
        line = slope * tokens + max(needed - slope * size for size, needed in needs.items())
        smallest = min(needs)
        share = needs[smallest] * min(tokens / smallest, 1.0)
        return max([line, share, *(needed for size, needed in needs.items() if size < tokens)])

"""Batches that were handed to an engine and whose vectors have not come back: what is lost when the engine is."""

from collections import deque
from collections.abc import Iterable, Iterator

from fletcher_core.errors import EngineError
from fletcher_core.tokens import TokenBatch


class BatchRefused(EngineError):
    """Of the batches that an engine has, the oldest, and no other, is what it fails on."""


class Unanswered:
    """Hands out `batches` in order, and again those that no engine has answered, to the next engine."""

    def __init__(self, batches: Iterable[TokenBatch]) -> None:
        self._source = iter(batches)
        self._waiting: deque[TokenBatch] = deque()
        self._failure: EngineError | None = None

    def batches(self) -> Iterator[TokenBatch]:
        """Those without an answer, then new ones. For one engine's `run`, until that ends."""
        yield from list(self._waiting)
        try:
            for batch in self._source:
                self._waiting.append(batch)
                yield batch
        except EngineError as error:
            self._failure = error
            raise

    def check(self) -> None:
        """After `run` raised an EngineError: raises it again if it was not the engine's but the source's."""
        if self._failure is not None:
            raise self._failure

    def answered(self) -> TokenBatch:
        """The vectors of the oldest have come: that batch."""
        return self._waiting.popleft()

    def take(self, most: int | None = None) -> list[TokenBatch]:
        """Those without an answer, or the oldest `most` of them, for the caller to see to: they are not handed out
        again."""
        count = len(self._waiting) if most is None else min(most, len(self._waiting))
        return [self._waiting.popleft() for _ in range(count)]

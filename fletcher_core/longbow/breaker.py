"""A circuit breaker for each Longbow server: how calls ended in, whether the next one may be tried out.

Closed, calls pass. Open, they fail at once, until a pause is over that doubles with every opening. Half-open, one call
at a time passes, and how it ends decides. Calls differ in what their success proves: a server that is over its memory
limit answers readiness and searches, while every put hangs.

Written here because no library has these parts: pybreaker, aiobreaker, purgatory and circuitbreaker count failures in a
row, wait a fixed time, and know neither a failure rate nor kinds of calls; pybreaker lets one call run at a time.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal
from weakref import WeakValueDictionary

from fletcher_core.errors import ConfigError
from fletcher_core.telemetry.metrics import BREAKER_STATE

CircuitState = Literal["closed", "open", "half-open"]


class Proof(IntEnum):
    """What a call proves about the server when it succeeds; each proves the ones before it, too."""

    IS_ALIVE = 0
    ANSWERS = 1
    TAKES_ROWS = 2
    KEEPS_ROWS = 3


@dataclass(frozen=True)
class BreakerSettings:
    """When a circuit opens, and for how long; times in seconds.

    It opens after `failures` in a row of calls of one kind, once such failures have cost `seconds_in_vain` together, or
    when at least `failure_share` of the calls of the last `window_seconds` failed, if these are `least_calls` or more.
    """

    failures: int = 5
    seconds_in_vain: float = 4.0
    """Below the timeout of a call: who has waited for one in vain need not wait for more."""
    failure_share: float = 0.5
    least_calls: int = 10
    window_calls: int = 20
    window_seconds: float = 60.0
    backoff: float = 0.5
    """How long it stays open; doubles with each opening up to `max_backoff`, shortened at random by up to a half."""
    max_backoff: float = 30.0

    def __post_init__(self) -> None:
        for name in ("seconds_in_vain", "window_seconds", "backoff", "max_backoff", "failure_share"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Longbow breaker {name}: {getattr(self, name)} is not above 0")
        if self.failure_share > 1:
            raise ConfigError(f"Longbow breaker failure_share: {self.failure_share} is above 1")
        if self.failures < 1 or not 1 <= self.least_calls <= self.window_calls:
            raise ConfigError(
                f"Longbow breaker: failures ({self.failures}) and least_calls ({self.least_calls}) must be at least 1, "
                f"and least_calls at most window_calls ({self.window_calls})"
            )


class CircuitOpenError(Exception):
    """A call that was not to be tried; the message says when one will be, and what failed last."""

    def __init__(self, seconds: float, last_failure: str) -> None:
        when = f"the next try is in {seconds:.1f} s" if seconds > 0 else "another call is trying it just now"
        super().__init__(f"as it did not work before ({when}). Last failure: {last_failure}")


class Attempt:
    """One call that the breaker let through; hand it back to `succeed`, `fail` or `abandon`."""

    def __init__(self, proof: Proof, epoch: int, started: float) -> None:
        self.proof = proof
        self.epoch = epoch
        self.started = started


class CircuitBreaker:
    """Of one server, for all threads of the process. `clock` counts seconds, `chance` gives numbers from 0 to 1."""

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings or BreakerSettings()
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._epoch = 0  # of the state; how a call of an earlier one ended says nothing new
        self._open_until: float | None = None
        self._probe: Attempt | None = None
        self._in_a_row = dict.fromkeys(Proof, 0)
        self._in_vain = dict.fromkeys(Proof, 0.0)
        self._window: deque[tuple[float, bool]] = deque(maxlen=self.settings.window_calls)
        self._openings = 0  # since the server last proved what it had failed at
        self._doubted = Proof.IS_ALIVE
        self._last_failure = ""

    @property
    def state(self) -> CircuitState:
        """As of now: an open circuit becomes half-open by the passing of time."""
        with self._lock:
            return self._state()

    @property
    def seconds_until_try(self) -> float:
        """Until the next call may be let through; 0 when it may be now."""
        with self._lock:
            return self._seconds_left()

    @property
    def last_failure(self) -> str:
        """What failed last, empty when nothing has."""
        with self._lock:
            return self._last_failure

    @property
    def is_on_trial(self) -> bool:
        """Whether the server has yet to prove what it failed at when the circuit last opened."""
        with self._lock:
            return self._openings > 0

    def deadline(self, short: float, full: float) -> float:
        """Seconds for a put: `short` for the first on trial, twice as long after each further failure, at most `full`.

        A server that hangs must not cost the full time again and again, nor a slow one never have the time it needs.
        """
        with self._lock:
            return full if not self._openings else min(full, short * 2.0 ** min(self._openings - 1, 30))

    @contextmanager
    def calling(self, proof: Proof, is_failure: Callable[[Exception], bool | None]) -> Iterator[None]:
        """Runs a call in a `with` block; exceptions that are no failures of the server count as its success.

        Where `is_failure` answers None, the exception is our own and says nothing about the server.

        Raises CircuitOpenError, without running it, when it is not to be tried.
        """
        attempt = self.acquire(proof)
        try:
            yield
        except Exception as error:
            failed = is_failure(error)
            if failed is None:
                self.abandon(attempt)
            elif failed:
                self.fail(attempt, str(error))
            else:
                self.succeed(attempt)
            raise
        except BaseException:
            self.abandon(attempt)
            raise
        self.succeed(attempt)

    def acquire(self, proof: Proof) -> Attempt:
        """Asks for a call. Raises CircuitOpenError when it is not to be tried."""
        with self._lock:
            if self._state() == "open" or self._probe is not None:
                raise CircuitOpenError(self._seconds_left(), self._last_failure)
            attempt = Attempt(proof, self._epoch, self._clock())
            if self._open_until is not None:
                self._probe = attempt
            return attempt

    def succeed(self, attempt: Attempt) -> None:
        """The call of `attempt` was answered."""
        with self._lock:
            if attempt.epoch != self._epoch:
                return
            self._release(attempt)
            if self._open_until is not None and attempt.proof > Proof.IS_ALIVE:
                self._enter(None)
            self._believe(attempt.proof)

    def fail(self, attempt: Attempt, reason: str) -> None:
        """The call of `attempt` failed."""
        with self._lock:
            if attempt.epoch != self._epoch:
                return
            self._last_failure = reason
            now = self._clock()
            proof = attempt.proof
            self._in_a_row[proof] += 1
            self._in_vain[proof] += now - attempt.started
            if proof > Proof.IS_ALIVE:
                self._window.append((now, False))
            if self._open_until is not None or self._has_failed_enough(proof):
                self._open(proof)

    def abandon(self, attempt: Attempt) -> None:
        """The call of `attempt` was broken off by us, which says nothing about the server."""
        with self._lock:
            self._release(attempt)

    def trip(self, proof: Proof, reason: str) -> None:
        """Opens the circuit for what was seen between calls, such as rows that are gone after their put's OK."""
        with self._lock:
            self._last_failure = reason
            if self._state() != "open":
                self._open(proof)

    def prove(self, proof: Proof) -> None:
        """The server did well at what only several calls together can tell. Closes no circuit."""
        with self._lock:
            if self._open_until is None:
                self._believe(proof)

    def reset(self) -> None:
        """Begins anew, as when the server was just started."""
        with self._lock:
            self._enter(None)
            self._believe(Proof.KEEPS_ROWS)
            self._window.clear()

    # For those who hold the lock

    def _state(self) -> CircuitState:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def _seconds_left(self) -> float:
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    def _has_failed_enough(self, proof: Proof) -> bool:
        settings = self.settings
        if self._in_a_row[proof] >= settings.failures or self._in_vain[proof] >= settings.seconds_in_vain:
            return True
        since = self._clock() - settings.window_seconds
        recent = [succeeded for at, succeeded in self._window if at >= since]
        return len(recent) >= settings.least_calls and recent.count(False) >= settings.failure_share * len(recent)

    def _believe(self, proof: Proof) -> None:
        """Take back what earlier failures said against this and lesser proofs."""
        if proof > Proof.IS_ALIVE:
            self._window.append((self._clock(), True))
        for lesser in Proof:
            if lesser <= proof:
                self._in_a_row[lesser], self._in_vain[lesser] = 0, 0.0
        if self._open_until is None and proof >= self._doubted:
            self._openings, self._doubted = 0, Proof.IS_ALIVE

    def _open(self, proof: Proof) -> None:
        settings = self.settings
        self._doubted = max(self._doubted, proof)
        longest = min(settings.max_backoff, settings.backoff * 2.0 ** min(self._openings, 30))
        self._openings += 1
        self._enter(self._clock() + longest * (0.5 + 0.5 * self._chance()))

    def _enter(self, open_until: float | None) -> None:
        self._epoch += 1
        self._open_until, self._probe = open_until, None
        self._window.clear()

    def _release(self, attempt: Attempt) -> None:
        if self._probe is attempt:
            self._probe = None


_KEPT = 16  # breakers that stay although nobody uses them just now, so that the next run knows what this one learnt
_breakers: WeakValueDictionary[str, CircuitBreaker] = WeakValueDictionary()
_recent: deque[CircuitBreaker] = deque(maxlen=_KEPT)
_registry = threading.Lock()


def breaker_of(address: str, settings: BreakerSettings | None = None) -> CircuitBreaker:
    """The process's one breaker of a server (`host:port`); `settings` count for whoever asks first."""
    with _registry:
        breaker = _breakers.get(address)
        if breaker is None:
            breaker = _breakers[address] = CircuitBreaker(settings)
        if breaker in _recent:
            _recent.remove(breaker)
        _recent.append(breaker)
        return breaker


def reset_breaker(address: str) -> None:
    """Begin anew with a server that was just started, if anybody called one at its address before."""
    with _registry:
        breaker = _breakers.get(address)
    if breaker is not None:
        breaker.reset()


def forget_breakers() -> None:
    """Let go of the breakers that nobody uses, for a test whose server may get an earlier one's port."""
    with _registry:
        _recent.clear()


def _states() -> dict[str, int]:
    """For `BREAKER_STATE`."""
    numbers: dict[CircuitState, int] = {"closed": 0, "half-open": 1, "open": 2}
    with _registry:
        breakers = list(_breakers.items())
    return {address: numbers[breaker.state] for address, breaker in breakers}


BREAKER_STATE.ask(_states)

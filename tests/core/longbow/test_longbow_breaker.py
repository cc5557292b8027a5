"""The circuit breaker: against a plain model under any order of events, under threads, and its few words."""

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.breaker import (
    Attempt,
    BreakerSettings,
    CircuitBreaker,
    CircuitOpenError,
    Proof,
    breaker_of,
    forget_breakers,
)

TIGHT = BreakerSettings(
    failures=3,
    seconds_in_vain=4.0,
    failure_share=0.5,
    least_calls=4,
    window_calls=6,
    window_seconds=10.0,
    backoff=1.0,
    max_backoff=8.0,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Model:
    """The same rules, worked out from lists of what happened since the circuit was last opened or closed.

    `ends` has (time, proof, succeeded, seconds) of every call that counted; `in_a_row` of each proof its failures'
    seconds since the last success that speaks for it.
    """

    def __init__(self, rules: BreakerSettings) -> None:
        self.rules = rules
        self.ends: list[tuple[float, bool]] = []
        self.in_a_row: dict[Proof, list[float]] = {proof: [] for proof in Proof}
        self.opened: list[Proof] = []  # what failed at each opening since the server was last believed
        self.pause: tuple[float, float] | None = None  # its beginning and end
        self.probe: object = None
        self.epoch = 0

    def state(self, now: float) -> str:
        if self.pause is None:
            return "closed"
        return "open" if now < self.pause[1] else "half-open"

    def lets_through(self, now: float) -> bool:
        return self.state(now) == "closed" or (self.state(now) == "half-open" and self.probe is None)

    def turn(self, pause: tuple[float, float] | None) -> None:
        self.pause, self.probe, self.ends = pause, None, []
        self.epoch += 1

    def open(self, now: float, proof: Proof) -> None:
        self.opened.append(proof)
        longest = min(self.rules.backoff * 2 ** (len(self.opened) - 1), self.rules.max_backoff)
        self.turn((now, now + longest * 0.75))

    def believe(self, now: float, proof: Proof) -> None:
        for lesser in range(proof + 1):
            self.in_a_row[Proof(lesser)] = []
        if proof != Proof.IS_ALIVE:
            self.ends.append((now, True))
        if self.pause is None and proof >= max(self.opened, default=Proof.IS_ALIVE):
            self.opened = []

    def succeed(self, now: float, attempt: object, proof: Proof) -> None:
        if self.probe is attempt:
            self.probe = None
        if self.pause is not None and proof != Proof.IS_ALIVE:
            self.turn(None)
        self.believe(now, proof)

    def fail(self, now: float, proof: Proof, seconds: float) -> None:
        rules = self.rules
        self.in_a_row[proof].append(seconds)
        if proof != Proof.IS_ALIVE:
            self.ends.append((now, False))
        recent = [good for at, good in self.ends[-rules.window_calls :] if at >= now - rules.window_seconds]
        mostly_bad = len(recent) >= rules.least_calls and recent.count(False) / len(recent) >= rules.failure_share
        enough = len(self.in_a_row[proof]) >= rules.failures or sum(self.in_a_row[proof]) >= rules.seconds_in_vain
        if self.pause is not None or enough or mostly_bad:
            self.open(now, proof)


PROOFS = st.sampled_from(Proof)


class AnyOrder(RuleBasedStateMachine):
    """Calls of several threads begin and end in any order; the breaker must do what the model does."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker(TIGHT, clock=self.clock, chance=lambda: 0.5)
        self.model = Model(TIGHT)
        self.under_way: list[tuple[Attempt, int, float]] = []

    @rule(proof=PROOFS)
    def begin(self, proof: Proof) -> None:
        now = self.clock.now
        if self.model.lets_through(now):
            attempt = self.breaker.acquire(proof)
            if self.model.state(now) == "half-open":
                self.model.probe = attempt
            self.under_way.append((attempt, self.model.epoch, now))
        else:
            with pytest.raises(CircuitOpenError):
                self.breaker.acquire(proof)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "fail", "abandon"]))
    def end(self, data: st.DataObject, how: str) -> None:
        attempt, epoch, started = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        now = self.clock.now
        if how == "succeed":
            self.breaker.succeed(attempt)
            if epoch == self.model.epoch:
                self.model.succeed(now, attempt, attempt.proof)
        elif how == "fail":
            self.breaker.fail(attempt, "it broke")
            if epoch == self.model.epoch:
                self.model.fail(now, attempt.proof, now - started)
        else:
            self.breaker.abandon(attempt)
            if self.model.probe is attempt:
                self.model.probe = None

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.74, 0.75, 1.5, 3.0, 6.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(proof=PROOFS)
    def trip(self, proof: Proof) -> None:
        self.breaker.trip(proof, "it broke otherwise")
        if self.model.state(self.clock.now) != "open":
            self.model.open(self.clock.now, proof)

    @rule(proof=PROOFS)
    def prove(self, proof: Proof) -> None:
        self.breaker.prove(proof)
        if self.model.pause is None:
            self.model.believe(self.clock.now, proof)

    @invariant()
    def agrees(self) -> None:
        now = self.clock.now
        assert self.breaker.state == self.model.state(now)
        until = 0.0 if self.model.pause is None else max(0.0, self.model.pause[1] - now)
        assert self.breaker.seconds_until_try == pytest.approx(until)
        assert self.breaker.is_on_trial == bool(self.model.opened)
        longer = 2.0 ** (len(self.model.opened) - 1) if self.model.opened else 1e9
        assert self.breaker.deadline(5.0, 30.0) == min(30.0, 5.0 * longer)

    @invariant()
    def one_probe_at_most(self) -> None:
        if self.breaker.state == "half-open":
            assert sum(epoch == self.model.epoch for _, epoch, _ in self.under_way) <= 1


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def opened(**changes: Any) -> tuple[CircuitBreaker, Clock]:
    """A breaker that three failures of a put have opened."""
    clock = Clock()
    breaker = CircuitBreaker(
        BreakerSettings(**{"failures": 3, "backoff": 1.0, **changes}), clock=clock, chance=lambda: 1.0
    )
    for _ in range(3):
        breaker.fail(breaker.acquire(Proof.TAKES_ROWS), "no room")
    assert breaker.state == "open"
    return breaker, clock


def test_an_open_circuit_says_when_the_next_try_is_and_what_failed_last() -> None:
    breaker, clock = opened()
    clock.now += 0.25
    with pytest.raises(CircuitOpenError, match=r"next try is in 0\.8 s.*Last failure: no room"):
        breaker.acquire(Proof.ANSWERS)


def test_who_waited_for_one_call_in_vain_need_not_wait_for_more() -> None:
    for calls, seconds in ((1, 4.0), (2, 2.0), (1, 5.0)):
        clock = Clock()
        breaker = CircuitBreaker(BreakerSettings(seconds_in_vain=4.0), clock=clock)
        for _ in range(calls):
            assert breaker.state == "closed"
            attempt = breaker.acquire(Proof.IS_ALIVE)
            clock.now += seconds
            breaker.fail(attempt, "no answer")
        assert breaker.state == "open"


def test_a_server_that_hangs_at_puts_is_not_believed_for_answering_other_calls() -> None:
    breaker, clock = opened()
    for pause in (1, 2, 4, 8, 16, 30, 30):
        assert breaker.seconds_until_try == pytest.approx(pause)
        clock.now += pause
        breaker.succeed(breaker.acquire(Proof.IS_ALIVE))
        assert breaker.state == "half-open"
        breaker.succeed(breaker.acquire(Proof.ANSWERS))  # readers may go on
        assert breaker.state == "closed"
        assert breaker.is_on_trial
        breaker.fail(breaker.acquire(Proof.TAKES_ROWS), "no room")
        assert breaker.state == "open"
    clock.now += 30
    breaker.succeed(breaker.acquire(Proof.TAKES_ROWS))
    assert (breaker.state, breaker.is_on_trial) == ("closed", False)
    assert breaker.deadline(5, 30) == 30


def test_a_put_on_trial_has_little_time_and_each_time_more() -> None:
    breaker, clock = opened()
    seen = []
    for _ in range(4):
        seen.append(breaker.deadline(5, 30))
        clock.now += 60
        breaker.fail(breaker.acquire(Proof.TAKES_ROWS), "no room")
    assert seen == [5, 10, 20, 30]


def test_rows_that_vanish_after_their_oks_lengthen_the_pauses_although_puts_succeed() -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerSettings(backoff=1.0), clock=clock, chance=lambda: 1.0)
    for pause in (1, 2, 4):
        breaker.succeed(breaker.acquire(Proof.TAKES_ROWS))
        breaker.trip(Proof.KEEPS_ROWS, "gone")
        assert breaker.seconds_until_try == pytest.approx(pause)
        clock.now += pause
    breaker.succeed(breaker.acquire(Proof.TAKES_ROWS))
    breaker.prove(Proof.KEEPS_ROWS)
    assert not breaker.is_on_trial


def test_the_pauses_of_many_processes_differ() -> None:
    pauses = set()
    for _ in range(50):
        breaker = CircuitBreaker(BreakerSettings(failures=1, backoff=8.0), clock=Clock())
        breaker.fail(breaker.acquire(Proof.ANSWERS), "x")
        pauses.add(breaker.seconds_until_try)
    assert len(pauses) == 50
    assert all(4.0 <= pause <= 8.0 for pause in pauses)


def test_of_many_threads_exactly_one_tries_a_server_that_was_down() -> None:
    for _ in range(20):
        breaker, clock = opened()
        clock.now += 1
        together = threading.Barrier(8)
        passed: list[Attempt] = []
        refused: list[str] = []

        def call(
            breaker: CircuitBreaker, together: threading.Barrier, passed: list[Attempt], refused: list[str]
        ) -> None:
            together.wait()
            try:
                passed.append(breaker.acquire(Proof.ANSWERS))
            except CircuitOpenError:
                refused.append(threading.current_thread().name)

        threads = [threading.Thread(target=call, args=(breaker, together, passed, refused)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(passed) == 1
        assert len(refused) == 7
        with pytest.raises(CircuitOpenError, match="another call is trying it"):
            breaker.acquire(Proof.TAKES_ROWS)


def test_what_counts_as_a_failure_is_up_to_the_call() -> None:
    breaker = CircuitBreaker(BreakerSettings(failures=1))

    def call(error: BaseException, is_failure: Callable[[Exception], bool | None]) -> None:
        with pytest.raises(type(error)), breaker.calling(Proof.ANSWERS, is_failure):
            raise error

    call(KeyError("a"), lambda error: False)
    call(KeyboardInterrupt(), lambda error: True)
    assert breaker.state == "closed"
    call(KeyError("a"), lambda error: True)
    assert (breaker.state, breaker.last_failure) == ("open", "'a'")
    breaker = CircuitBreaker(BreakerSettings(failures=1, backoff=0.001))
    call(KeyError("a"), lambda error: True)
    while breaker.state == "open":
        time.sleep(0.001)
    call(TypeError("our own"), lambda error: None)
    assert breaker.state == "half-open"
    call(TypeError("an answer"), lambda error: False)  # so the trial was not left under way
    assert breaker.state == "closed"
    breaker.trip(Proof.ANSWERS, "x")
    breaker.reset()
    assert breaker.state == "closed"


def test_a_process_has_one_breaker_a_server_and_keeps_only_a_few_that_nobody_uses() -> None:
    first = breaker_of("a:1")
    assert breaker_of("a:1", BreakerSettings(failures=1)) is first
    assert breaker_of("a:2") is not first
    name = id(first)
    del first
    assert id(breaker_of("a:1")) == name  # remembered between two runs
    used = breaker_of("a:3")
    for number in range(100):
        breaker_of(f"b:{number}")
    gc.collect()
    assert breaker_of("a:3") is used
    from fletcher_core.longbow import breaker as module

    assert len(module._breakers) <= 18
    forget_breakers()
    gc.collect()
    assert list(module._breakers) == ["a:3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"failures": 0}, "failures"),
        ({"least_calls": 30}, "at most window_calls"),
        ({"failure_share": 1.5}, "failure_share: 1.5 is above 1"),
        ({"backoff": 0.0}, "backoff: 0.0 is not above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BreakerSettings(**changes)

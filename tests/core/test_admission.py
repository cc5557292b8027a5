from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.admission import Admission, Verdict
from fletcher_core.errors import ConfigError

GIB = 1 << 30
KIB = 1 << 10


@dataclass
class SimulatedMemory:
    """A device whose weights take `in_use`, and whose peak the test sets."""

    limit: int = 4 * GIB
    in_use: int = GIB
    most: int = 0
    cached: int = 0
    released: int = 0

    def active(self) -> int:
        return self.in_use + self.cached

    def peak(self) -> int:
        return self.most

    def reset_peak(self) -> None:
        self.most = self.active()

    def release_cache(self) -> None:
        self.cached = 0
        self.released += 1


def test_the_prior_decides_until_something_was_measured() -> None:
    admission = Admission(SimulatedMemory(), bytes_per_token=100 * KIB)
    assert admission.estimate(4096) == 4096 * 100 * KIB
    admission.observe(4096, 80 * KIB * 4096)
    assert admission.estimate(4096) == 4096 * 80 * KIB
    assert admission.estimate(8192) == 8192 * 80 * KIB


def test_a_size_never_seen_lies_on_the_line_through_the_others() -> None:
    admission = Admission(SimulatedMemory(), 1.0)
    for tokens in (1024, 2048, 8192):
        admission.observe(tokens, 50_000_000 + 1000 * tokens)
    assert admission.estimate(4096) == pytest.approx(50_000_000 + 1000 * 4096)
    assert admission.estimate(16384) == pytest.approx(50_000_000 + 1000 * 16384)


def test_an_estimate_is_the_most_seen_and_sinks_slowly() -> None:
    admission = Admission(SimulatedMemory(), 1.0)
    for needed in (100, 1000, 500):
        admission.observe(64, needed)
    assert 950 < admission.estimate(64) < 1000
    for _ in range(300):
        admission.observe(64, 500)
    assert admission.estimate(64) == pytest.approx(500, rel=0.01)


@given(st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 8 * GIB)), max_size=30), st.integers(1, 40_000))
def test_no_estimate_is_below_what_a_smaller_size_needs(observed: list[tuple[int, int]], tokens: int) -> None:
    admission = Admission(SimulatedMemory(), 1000.0)
    for size, needed in observed:
        admission.observe(size, needed)
    sizes = {size for size, _ in observed}
    if tokens not in sizes:
        assert all(admission.estimate(tokens) >= admission.estimate(size) for size in sizes if size < tokens)
    assert admission.estimate(tokens) >= 0


@given(
    limit=st.integers(1, 8 * GIB),
    weights=st.integers(0, 4 * GIB),
    growth=st.integers(0, 4 * GIB),
    observed=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 4 * GIB)), max_size=10),
    failed=st.none() | st.integers(1, 64),
    tokens=st.integers(1, 64),
    in_flight=st.integers(0, 64),
    divisible=st.booleans(),
)
def test_verdicts_hold_what_they_promise(
    limit: int,
    weights: int,
    growth: int,
    observed: list[tuple[int, int]],
    failed: int | None,
    tokens: int,
    in_flight: int,
    divisible: bool,
) -> None:
    memory = SimulatedMemory(limit=limit, in_use=weights)
    admission = Admission(memory, bytes_per_token=1000 * KIB)
    for size, needed in observed:
        admission.observe(size * 64, needed)
    if failed is not None:
        admission.allocation_failed(failed * 64)
    if in_flight > 0:
        memory.in_use += growth
    tokens, in_flight = tokens * 64, in_flight * 64
    estimate = admission.estimate(tokens)  # a SPLIT may lower it
    verdict = admission.admit(tokens, in_flight, divisible=divisible)
    fits = memory.in_use + 1.1 * estimate <= limit
    if in_flight > 0:
        fits = fits and weights + 1.1 * (estimate + admission.estimate(in_flight)) <= limit
    capped = failed is not None and tokens + in_flight >= failed * 64
    if verdict is Verdict.WAIT:
        assert in_flight > 0
    elif verdict is Verdict.SPLIT:
        assert in_flight == 0
        assert divisible
    else:
        assert (fits and not capped) or (in_flight == 0 and not divisible)


def test_a_batch_waits_for_what_is_in_flight_and_runs_when_that_has_ended() -> None:
    memory = SimulatedMemory(limit=2 * GIB, in_use=GIB)
    admission = Admission(memory, bytes_per_token=GIB / 8192)
    assert admission.admit(4096, 0) is Verdict.RUN
    assert admission.admit(4096, 4096) is Verdict.WAIT  # though nothing shows in what is active yet
    memory.in_use += GIB // 2
    assert admission.admit(2048, 4096) is Verdict.RUN  # what is in flight counts once
    memory.in_use -= GIB // 2
    assert admission.admit(4096, 0) is Verdict.RUN


def test_what_does_not_fit_alone_is_split_down_to_one_sequence() -> None:
    memory = SimulatedMemory(limit=2 * GIB, in_use=GIB)
    admission = Admission(memory, bytes_per_token=GIB / 1024)
    assert admission.admit(4096, 0) is Verdict.SPLIT
    assert admission.admit(4096, 512, divisible=False) is Verdict.WAIT
    assert admission.admit(4096, 0, divisible=False) is Verdict.RUN
    assert admission.admit(512, 0) is Verdict.RUN


def test_the_cache_is_given_up_before_a_batch_is_split() -> None:
    memory = SimulatedMemory(limit=2 * GIB, in_use=GIB, cached=GIB)
    admission = Admission(memory, bytes_per_token=GIB / 8192)
    assert admission.admit(4096, 0) is Verdict.RUN
    assert memory.released == 1


@pytest.mark.parametrize(("margin", "verdict"), [(0.0, Verdict.RUN), (0.2, Verdict.SPLIT)])
def test_the_margin_is_kept_free(margin: float, verdict: Verdict) -> None:
    admission = Admission(SimulatedMemory(limit=1_000_000, in_use=0), bytes_per_token=1000, margin=margin)
    assert admission.admit(900, 0) is verdict


def test_after_a_failure_fewer_tokens_are_in_flight_until_there_is_much_more_room() -> None:
    memory = SimulatedMemory(limit=4 * GIB, in_use=GIB)
    admission = Admission(memory, bytes_per_token=KIB)
    admission.allocation_failed(4096)
    assert memory.released == 1
    assert admission.admit(2048, 0) is Verdict.RUN
    assert admission.admit(2048, 2048) is Verdict.WAIT
    assert admission.admit(4096, 0) is Verdict.SPLIT
    admission.allocation_failed(2048)
    assert admission.admit(2048, 0) is Verdict.SPLIT
    memory.limit += GIB // 2
    assert admission.admit(2048, 0) is Verdict.SPLIT
    memory.limit += GIB
    assert admission.admit(8192, 0) is Verdict.RUN


def test_a_failure_is_forgotten_once_as_many_tokens_ran() -> None:
    admission = Admission(SimulatedMemory(), bytes_per_token=KIB)
    admission.allocation_failed(4096)
    assert admission.admit(4096, 0, divisible=False) is Verdict.RUN
    assert admission.admit(4096, 0) is Verdict.SPLIT  # nobody said that it came through
    admission.observe(4096, 4 << 20)
    assert admission.admit(4096, 0) is Verdict.RUN


def test_a_size_that_failed_is_tried_by_one_batch_after_a_while() -> None:
    admission = Admission(SimulatedMemory(), bytes_per_token=KIB, relax_after=3)
    admission.allocation_failed(4096)
    assert [admission.admit(2048, 0) for _ in range(2)] == [Verdict.RUN] * 2
    assert admission.admit(4096, 0) is Verdict.SPLIT
    assert admission.admit(2048, 0) is Verdict.RUN
    assert admission.admit(2048, 2048) is Verdict.RUN  # after three batches: this one tries
    assert admission.admit(2048, 2048) is Verdict.WAIT  # the other one ended, not this
    assert admission.admit(1024, 2048) is Verdict.RUN
    assert admission.admit(4096, 1024) is Verdict.RUN  # it ended and nothing failed


def test_a_size_that_fails_again_is_tried_ever_more_rarely() -> None:
    admission = Admission(SimulatedMemory(), bytes_per_token=KIB, relax_after=3)
    admission.allocation_failed(4096)
    patience = []
    for _ in range(8):
        patience.append(0)
        while admission.admit(4096, 0) is Verdict.SPLIT:
            assert admission.admit(2048, 0) is Verdict.RUN
            patience[-1] += 1
        admission.allocation_failed(4096)
        admission.allocation_failed(4096)  # of another batch that was in flight: the same failure
    assert patience == [3, 6, 12, 24, 48, 96, 96, 96]


def test_a_failure_that_is_reported_late_counts_as_one_of_the_size_that_was_tried() -> None:
    admission = Admission(SimulatedMemory(), bytes_per_token=KIB, relax_after=1)
    admission.allocation_failed(4096)
    assert admission.admit(1024, 0) is Verdict.RUN
    assert admission.admit(4096, 0) is Verdict.RUN
    assert admission.admit(4096, 0) is Verdict.RUN  # the engine waited for it and has not said yet that it failed
    admission.allocation_failed(4096)
    assert admission.admit(1024, 0) is Verdict.RUN
    assert admission.admit(4096, 0) is Verdict.SPLIT
    assert admission.admit(1024, 0) is Verdict.RUN
    assert admission.admit(4096, 0) is Verdict.RUN


@dataclass
class SimulatedDevice:
    """Takes three batches at a time and refuses memory for more than `room` tokens; watches what it is given."""

    admission: Admission
    relax_after: int
    room: Callable[[], int]
    flying: deque[int] = field(default_factory=deque)
    failures: list[int] = field(default_factory=list)
    admitted: int = 0
    admitted_before: int = 0  # up to the last failure

    def launch(self, tokens: int) -> bool:
        """Whether the batch ran whole."""
        while (verdict := self.admission.admit(tokens, sum(self.flying), divisible=tokens > 1)) is Verdict.WAIT:
            self.flying.popleft()
        if verdict is Verdict.RUN:
            self.admitted += 1
            together = sum(self.flying) + tokens
            if together <= self.room():
                self.flying.append(tokens)
                if len(self.flying) > 3:
                    self.flying.popleft()
                return True
            if together >= min(self.failures, default=together + 1):
                assert self.admitted - self.admitted_before > self.relax_after, "tried again too soon"
            self.failures.append(together)
            self.admitted_before = self.admitted
            self.admission.allocation_failed(together)
        if tokens == 1:
            return self.launch(tokens)
        for part in (tokens // 2, tokens - tokens // 2):
            self.launch(part)
        return False


@given(st.lists(st.integers(1, 64), min_size=1, max_size=8), st.integers(1, 100), st.integers(1, 5))
def test_a_device_without_room_is_seldom_asked_for_more(sizes: list[int], room: int, relax_after: int) -> None:
    admission = Admission(SimulatedMemory(), bytes_per_token=1, relax_after=relax_after)
    device = SimulatedDevice(admission, relax_after, lambda: room)
    for number in range(300):
        device.launch(sizes[number % len(sizes)])
    # Each failure is at fewer tokens than any before, or of a try after twice the patience of the last one.
    tries = sum(failed >= min(device.failures[:number]) for number, failed in enumerate(device.failures) if number)
    assert relax_after * sum(min(2**number, 32) for number in range(tries)) <= device.admitted


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=8),
    st.integers(1, 100),
    st.integers(1, 5),
    st.integers(0, 40),
)
def test_once_the_memory_is_back_every_batch_runs_whole(
    sizes: list[int], room: int, relax_after: int, short: int
) -> None:
    now = room
    admission = Admission(SimulatedMemory(), bytes_per_token=1, relax_after=relax_after)
    device = SimulatedDevice(admission, relax_after, lambda: now)
    for number in range(short):
        device.launch(sizes[number % len(sizes)])
    now = 1000
    whole = [device.launch(sizes[number % len(sizes)]) for number in range(40 * 32)]
    assert all(whole[-32:])


def test_one_wild_measurement_does_not_forbid_its_size_for_good() -> None:
    memory = SimulatedMemory(limit=2 * GIB, in_use=GIB)
    admission = Admission(memory, bytes_per_token=1)
    for tokens in (1024, 2048):
        admission.observe(tokens, tokens * 100 * KIB)
    admission.observe(4096, 2 * GIB)
    verdicts = [admission.admit(4096, 0) for _ in range(60)]
    assert verdicts[0] is Verdict.SPLIT
    assert verdicts[-1] is Verdict.RUN


def test_a_size_that_the_others_rule_out_too_is_not_tried_again() -> None:
    admission = Admission(SimulatedMemory(limit=2 * GIB, in_use=GIB), bytes_per_token=1)
    for tokens in (1024, 2048, 4096):
        admission.observe(tokens, tokens * 400 * KIB)
    assert {admission.admit(4096, 0) for _ in range(500)} == {Verdict.SPLIT}


def test_measuring_takes_the_peak_above_what_was_in_use() -> None:
    memory = SimulatedMemory(in_use=GIB)
    admission = Admission(memory, 1.0)
    with admission.measuring(1024):
        memory.most = GIB + 12345
    assert admission.estimate(1024) == 12345


def test_a_batch_that_failed_is_not_measured() -> None:
    memory = SimulatedMemory(in_use=GIB)
    admission = Admission(memory, 1.0)
    with pytest.raises(RuntimeError), admission.measuring(1024):
        raise RuntimeError("out of memory")
    assert admission.estimate(1024) == 1024


@pytest.mark.parametrize(
    ("bytes_per_token", "margin", "relax_after"),
    [(0, 0.1, 1), (-1, 0.1, 1), (1, -0.1, 1), (float("nan"), 0.1, 1), (1, 0.1, 0)],
)
def test_settings_that_cannot_work_are_refused(bytes_per_token: float, margin: float, relax_after: int) -> None:
    with pytest.raises(ConfigError):
        Admission(SimulatedMemory(), bytes_per_token, margin, relax_after=relax_after)


def test_an_early_retry_is_forgotten_once_enough_batches_ran_since() -> None:
    """Another program that takes memory now and then must not make each ban twice as long as the last."""
    admission = Admission(SimulatedMemory(), bytes_per_token=KIB, relax_after=3)

    def batches_until_it_may_run() -> int:
        admission.allocation_failed(100)
        count = 0
        while admission.admit(100, 0) is not Verdict.RUN:
            assert admission.admit(10, 0) is Verdict.RUN
            count += 1
        return count

    first = batches_until_it_may_run()
    for _ in range(4):
        for _ in range(30):
            assert admission.admit(100, 0) is Verdict.RUN
        assert batches_until_it_may_run() == first

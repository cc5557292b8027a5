"""Which device gets the next batch, in simulated time: no device and no clock takes part."""

import heapq
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.engines.dispatch import Load, Rate, choose, rooms

DEPTH = 4
TOKENS = 100


def simulate(rates: Sequence[float], batches: int, window: int = 2) -> tuple[float, list[int]]:
    """Seconds until all of `batches` are yielded in order, and how many each device computed. Devices compute one batch
    after another; at most `window` times what may be in flight is out, as in a pool's run."""
    known = [Rate() for _ in rates]
    flying: list[list[float]] = [[] for _ in rates]  # ends
    computed = [0] * len(rates)
    ends: list[tuple[float, int, int, float]] = []  # end, batch, device, seconds
    now, drawn, yielded = 0.0, 0, 0
    finished: set[int] = set()
    while yielded < batches:
        loads = [Load(len(f), TOKENS * len(f), rate.value, DEPTH) for f, rate in zip(flying, known, strict=True)]
        may_draw = drawn < batches and drawn - yielded < window * DEPTH * len(rates)
        if may_draw and (chosen := choose(loads, TOKENS)) is not None:
            seconds = TOKENS / rates[chosen]
            end = max([now, *flying[chosen]]) + seconds
            flying[chosen].append(end)
            heapq.heappush(ends, (end, drawn, chosen, seconds))
            drawn += 1
            continue
        now, batch, device, seconds = heapq.heappop(ends)
        flying[device].pop(0)
        known[device].observe(TOKENS, seconds)
        computed[device] += 1
        finished.add(batch)
        while yielded in finished:
            yielded += 1
    return now, computed


def test_equal_devices_share_the_work_and_take_their_share_of_the_time() -> None:
    for count in (2, 3, 8):
        seconds, computed = simulate([1000.0] * count, 400)
        assert max(computed) - min(computed) <= 1
        assert seconds == pytest.approx(400 * TOKENS / 1000.0 / count, rel=0.01)


@pytest.mark.parametrize("slower", [1.2, 2, 3, 5, 8, 12])
def test_a_slower_device_gets_proportionally_less_and_holds_up_nobody(slower: float) -> None:
    seconds, (fast, slow) = simulate([1000.0, 1000.0 / slower], 2000)
    assert fast / slow == pytest.approx(slower, rel=0.15)
    best = 2000 * TOKENS / (1000.0 + 1000.0 / slower)
    assert seconds <= 1.05 * best


def test_a_device_of_unknown_speed_gets_a_first_try_as_if_it_were_the_fastest() -> None:
    busy, new = Load(1, TOKENS, 1000.0, DEPTH), Load(0, 0, 0.0, DEPTH)
    assert choose([busy, new], TOKENS) == 1
    assert choose([new, busy], TOKENS) == 0
    assert rooms([busy, new]) == [3, 4]


def test_the_one_that_is_through_first_is_chosen_not_the_one_with_least_in_flight() -> None:
    fast, slow = Load(2, 200, 1000.0, DEPTH), Load(0, 0, 300.0, DEPTH)
    assert choose([fast, slow], 100) == 0  # 0.3 s, and 0.33 s
    assert choose([fast, Load(0, 0, 350.0, DEPTH)], 100) == 1


def test_whoever_is_closed_or_full_gets_nothing() -> None:
    assert choose([Load(DEPTH, 400, 1000.0, DEPTH), Load(0, 0, 1000.0, DEPTH, is_open=False)], 1) is None
    assert choose([], 1) is None


@given(
    st.lists(
        st.builds(
            Load,
            batches=st.integers(0, 8),
            tokens=st.integers(0, 10**6),
            rate=st.floats(0, 1e7),
            depth=st.integers(1, 8),
            is_open=st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(1, 10**6),
)
def test_no_device_ever_has_more_than_its_depth_and_an_idle_one_always_has_room(loads: list[Load], tokens: int) -> None:
    for load, room in zip(loads, rooms(loads), strict=True):
        assert 0 <= room <= load.depth
        assert not room or load.batches + room <= load.depth
        assert (load.is_open and load.batches == 0) <= (room >= 1)
    chosen = choose(loads, tokens)
    assert (chosen is None) == (not any(rooms(loads)))
    assert chosen is None or rooms(loads)[chosen]


def test_a_rate_follows_what_a_device_did_of_late_and_short_batches_say_little() -> None:
    rate = Rate()
    assert rate.value == 0.0
    for _ in range(100):
        rate.observe(1000, 1.0)
    assert rate.value == pytest.approx(1000.0)
    rate.observe(10, 0.1)  # a tenth of the rate, for a tenth of the time
    assert rate.value > 980
    for _ in range(30):
        rate.observe(1000, 2.0)
    assert rate.value == pytest.approx(500.0, rel=0.05)

"""The statistics of bench/compare.py: a slowdown is found, noise is not taken for one."""

from math import comb

import numpy as np
import pytest
from compare import LIMIT, Series
from paired import FEWEST_PAIRS, compare, interval_rank

PAIRS = 12


def pairs(slowdown: float, noise: float, seed: int, count: int = PAIRS) -> tuple[list[float], list[float]]:
    """Times of a machine whose speed wanders threefold, each with noise of its own."""
    random = np.random.default_rng(seed)
    machine = np.exp(np.cumsum(random.normal(0, 0.3, count)))
    base, new = (machine * random.lognormal(0, noise, count) for _ in range(2))
    return list(base), list(slowdown * new)


def test_equal_times_are_no_difference() -> None:
    verdict = compare([2.0] * PAIRS, [2.0] * PAIRS)
    assert (verdict.ratio, verdict.low, verdict.high, verdict.pairs) == (1, 1, 1, PAIRS)
    assert not verdict.slower
    assert not verdict.faster
    assert not verdict.regressed(LIMIT)


def test_a_slowdown_of_30_percent_is_a_regression_also_on_a_machine_that_wanders() -> None:
    found = [compare(*pairs(1.3, 0.02, seed)).regressed(LIMIT) for seed in range(100)]
    assert all(found)


def test_noise_without_a_change_is_never_a_regression_and_rarely_slower() -> None:
    verdicts = [compare(*pairs(1.0, 0.15, seed)) for seed in range(500)]
    assert not any(verdict.regressed(LIMIT) for verdict in verdicts)
    assert sum(verdict.slower for verdict in verdicts) <= 0.025 * 500 * 1.5


def test_a_slowdown_of_10_percent_is_seen_and_fails_nothing() -> None:
    verdict = compare(*pairs(1.1, 0.01, 0))
    assert verdict.slower
    assert not verdict.regressed(LIMIT)


def test_two_wild_pairs_on_each_side_do_not_hide_a_regression() -> None:
    new = [1.3] * (PAIRS - 4) + [0.1, 0.2, 90.0, 50.0]
    verdict = compare([1.0] * PAIRS, new)
    assert (verdict.low, verdict.ratio, verdict.high) == (1.3, 1.3, 1.3)
    assert verdict.regressed(LIMIT)


@pytest.mark.parametrize("count", range(FEWEST_PAIRS, 41))
def test_the_interval_is_the_narrowest_with_95_percent_of_confidence(count: int) -> None:
    def outside(rank: int) -> float:
        """The chance that the median is not between the ratios left when `rank` are dropped at each end."""
        return 2 * sum(comb(count, heads) for heads in range(rank + 1)) / 2**count

    rank = interval_rank(count)
    assert outside(rank) <= 0.05 < outside(rank + 1)


def test_with_too_few_pairs_nothing_is_claimed() -> None:
    assert 2 * 0.5 ** (FEWEST_PAIRS - 1) > 0.05 >= 2 * 0.5**FEWEST_PAIRS
    verdict = compare([1.0] * (FEWEST_PAIRS - 1), [9.0] * (FEWEST_PAIRS - 1))
    assert not verdict.slower
    assert not verdict.regressed(LIMIT)


@pytest.mark.parametrize(
    ("errors", "fails", "words"),
    [
        ({"new": "gone"}, True, "cannot measure new: gone"),
        ({"base": "not yet"}, False, "cannot measure base: not yet"),
        ({"base": "no", "new": "no"}, False, "cannot measure base: no; cannot measure new: no"),
    ],
)
def test_only_what_the_base_could_do_counts_as_lost(errors: dict[str, str], fails: bool, words: str) -> None:
    series = Series(errors=errors)
    assert series.fails(LIMIT) is fails
    assert series.words(LIMIT) == words


def test_the_words_say_what_the_figures_say() -> None:
    def words(slowdown: float) -> str:
        return Series({"base": [1.0] * PAIRS, "new": [slowdown] * PAIRS}).words(LIMIT)

    assert words(1.0) == "no difference beyond noise"
    assert words(1.1) == "slower"
    assert words(0.9) == "faster"
    assert words(1.3) == "REGRESSION beyond 20%"

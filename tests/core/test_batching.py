import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.batching import plan_batches, plan_buckets
from fletcher_core.token_budget import round_up, token_buckets
from fletcher_core.tokens import TokenBatch, cumulative


@given(
    lengths=st.lists(st.integers(1, 600), max_size=200),
    budget=st.integers(1, 4096),
    multiple=st.sampled_from([1, 8, 16]),
)
def test_batches_cover_every_sequence_once_within_the_budget(lengths: list[int], budget: int, multiple: int) -> None:
    batches = plan_batches(np.array(lengths, np.int64), budget, multiple)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for rows in batches:
        width = -(-max(lengths[row] for row in rows) // multiple) * multiple
        assert len(rows) == 1 or width * len(rows) <= budget


@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=30), data=st.data())
def test_take_packs_the_chosen_sequences(lengths: list[int], data: st.DataObject) -> None:
    cu_seqlens = cumulative(np.array(lengths))
    batch = TokenBatch(np.arange(cu_seqlens[-1], dtype=np.int32), cu_seqlens)
    order = np.array(data.draw(st.permutations(range(len(lengths)))), np.int64)[: len(lengths) // 2 + 1]
    taken = batch.take(order)
    expected = [batch.ids[cu_seqlens[row] : cu_seqlens[row + 1]].tolist() for row in order]
    offsets = taken.cu_seqlens
    assert [taken.ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected


@given(
    lengths=st.lists(st.integers(1, 600), max_size=300),
    largest=st.sampled_from([1024, 4096, 32768]),
    data=st.data(),
)
def test_filled_batches_cover_every_sequence_once_within_the_budget(
    lengths: list[int], largest: int, data: st.DataObject
) -> None:
    buckets = token_buckets(largest)
    budget = data.draw(st.sampled_from(buckets))
    batches = plan_buckets(np.array(lengths, np.int64), budget, buckets)
    order = np.concatenate(batches).tolist() if batches else []
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
    for rows in batches:
        assert rows.dtype == np.int64
        assert len(rows) == 1 or sum(lengths[row] for row in rows) <= budget


@given(lengths=st.lists(st.integers(1, 64), min_size=200, max_size=600), budget=st.sampled_from([512, 2048, 4096]))
def test_little_of_what_is_computed_is_filling(lengths: list[int], budget: int) -> None:
    buckets = token_buckets(4096)
    batches = plan_buckets(np.array(lengths, np.int64), budget, buckets)
    computed = sum(round_up(sum(lengths[row] for row in rows), buckets) for rows in batches)
    # A batch stops at most one text short of its bucket, and the last ones may be a quarter empty.
    assert computed - sum(lengths) <= 64 * len(batches) + budget / 2

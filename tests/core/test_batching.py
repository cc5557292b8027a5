import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.batching import plan_batches
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

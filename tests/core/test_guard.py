import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fletcher_core.guard import sound_vectors


@given(st.integers(0, 19), st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 7))
def test_one_bad_element_flags_its_row_and_no_other(row: int, value: float, column: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[row, column] = value
    for normalized in (True, False):
        assert np.flatnonzero(~sound_vectors(vectors, normalized)).tolist() == [row]

"""The last look at vectors before they leave: which ones are finite and, where normalized, of unit norm."""

import numpy as np
import numpy.typing as npt

# float32 rounding over 4,096 dimensions stays below 1e-5; bfloat16 never reaches the norm, which is taken in float32.
_NORM_TOLERANCE = 1e-3


def sound_vectors(vectors: npt.NDArray[np.float32], normalized: bool) -> npt.NDArray[np.bool_]:
    """float32 [n, dim] -> bool [n]: finite, not zero, and of norm 1 within 1e-3 if `normalized`."""
    # One pass: NaN and Inf anywhere in a row show in its sum of squares, and so does a zero row.
    squares = np.einsum("nd,nd->n", vectors, vectors)
    if normalized:
        return np.abs(np.sqrt(squares) - 1.0) <= _NORM_TOLERANCE
    return np.isfinite(squares) & (squares > 0.0)

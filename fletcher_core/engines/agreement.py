"""Do two computations of the same texts agree."""

import numpy as np
import numpy.typing as npt


def least_cosine(vectors: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """The smallest cosine between rows of two float32 [n, dim]; NaN where one has none, which is below no bound."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosines = (vectors * reference).sum(axis=1) / lengths
    return float(cosines.min())

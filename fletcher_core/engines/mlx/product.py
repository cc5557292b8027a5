"""The plain matrix product of a layer, and the check that a fused one must pass before it runs."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from fletcher_kernels.kernel import float64, on_device, type_name
from fletcher_kernels.norm import TOLERANCE
from fletcher_kernels.selection import relative_error

# More than a tile of rows, and not a whole number of them.
_TRIAL_ROWS = 300


def linear(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """x @ weight^T + bias; the bias goes into the product's epilogue."""
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def trial(weight: mx.array) -> mx.array:
    """Some rows to multiply with `weight` [n, k]: [300, k] of its type."""
    return on_device([np.random.default_rng(0).normal(size=(_TRIAL_ROWS, weight.shape[1]))], type_name(weight))[0]


def disagreement(run: Callable[[], mx.array], wanted: npt.NDArray[np.float64], weight: mx.array) -> str:
    """What is wrong with what `run` computes, in the type of `weight`; empty if it is `wanted`, twice the same."""
    got, again = run(), run()
    mx.eval(got, again)
    first, second = float64(got), float64(again)
    if not np.array_equal(first, second):
        return "two runs of it differ"
    error = relative_error(first, wanted)
    return (
        "" if error <= TOLERANCE[type_name(weight)] else f"it differs from float64 by {error:.2g} of the largest value"
    )

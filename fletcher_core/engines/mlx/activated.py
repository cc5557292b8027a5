"""The first product of an MLP with its activation: in one kernel on a Hopper GPU, in two steps elsewhere."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from fletcher_kernels import gemm_act
from fletcher_kernels.kernel import float64, on_device, type_name
from fletcher_kernels.norm import TOLERANCE
from fletcher_kernels.selection import FUSED, KernelSet, relative_error

from fletcher_core.models.architecture import Activation


def activated_product(
    weight: mx.array, bias: mx.array | None, activation: Activation, *, gated: bool, kernels: KernelSet
) -> Callable[[mx.array], mx.array]:
    """act(x @ weight^T + bias), [T, k] -> [T, n]; gated: silu(gate) * up of the halves of n, [T, n / 2].

    The fused kernel is checked against float64 the first time that a weight of this shape comes; if it fails, it is
    replaced for good.
    """
    name: gemm_act.Activation = "swiglu" if gated else activation
    shape = (weight.shape[0], weight.shape[1])
    fused = kernels.dialect == "cuda" and FUSED not in kernels.replaced
    if fused and gemm_act.supported(shape, weight.dtype, gated=gated):
        packed = gemm_act.pack_weight(weight, gated=gated)
        if _holds(packed, weight, bias, name, kernels):
            return lambda x: gemm_act.gemm_act(x, packed, bias, activation=name)
    if gated:
        return lambda x: kernels.run("swiglu", [linear(x, weight)])[0]

    def act(x: mx.array) -> mx.array:
        return gemm_act.activate(x, activation)

    if kernels.dialect is not None:  # one kernel on a GPU
        act = mx.compile(act, shapeless=True)
    return lambda x: act(linear(x, weight, bias))


def linear(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """x @ weight^T + bias; the bias goes into the product's epilogue."""
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def _holds(
    packed: gemm_act.PackedWeight,
    weight: mx.array,
    bias: mx.array | None,
    name: gemm_act.Activation,
    kernels: KernelSet,
) -> bool:
    """Whether the kernel computes what it should on some rows, more than a tile of them and not a whole number."""

    def check() -> str:
        (x,) = on_device([np.random.default_rng(0).normal(size=(300, packed.k))], type_name(weight))
        got = gemm_act.gemm_act(x, packed, bias, activation=name)
        again = gemm_act.gemm_act(x, packed, bias, activation=name)
        mx.eval(got, again)
        wanted = gemm_act.reference(float64(x), float64(weight), None if bias is None else float64(bias), name)
        tolerance = TOLERANCE[type_name(weight)]
        first, second = float64(got), float64(again)
        if not np.array_equal(first, second):
            return "two runs of it differ"
        error = relative_error(first, wanted)
        return "" if error <= tolerance else f"it differs from float64 by {error:.2g} of the largest value"

    return kernels.admit(FUSED, (*weight.shape, name, weight.dtype, bias is None), check)

"""The first product of an MLP with its activation: in one kernel on a Hopper GPU, in two steps elsewhere."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from fletcher_kernels import gemm_act
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
        return lambda x: kernels.run("swiglu", [x @ weight.T])[0]
    act = elementwise(activation, compiled=kernels.dialect is not None)
    return lambda x: act(x @ weight.T if bias is None else mx.addmm(bias, x, weight.T))


def elementwise(name: Activation, *, compiled: bool) -> Callable[[mx.array], mx.array]:
    """An activation in float32 between two casts; fused into one kernel if `compiled`."""

    def apply(x: mx.array) -> mx.array:
        y = x.astype(mx.float32)
        if name == "gelu":
            y = y * 0.5 * (1.0 + mx.erf(y * 0.7071067811865476))
        elif name == "gelu_tanh":
            y = y * 0.5 * (1.0 + mx.tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)))
        elif name == "silu":
            y = y * mx.sigmoid(y)
        else:
            y = mx.maximum(y, 0.0)
        return y.astype(x.dtype)

    return mx.compile(apply, shapeless=True) if compiled else apply


def _holds(
    packed: gemm_act.PackedWeight,
    weight: mx.array,
    bias: mx.array | None,
    name: gemm_act.Activation,
    kernels: KernelSet,
) -> bool:
    """Whether the kernel computes what it should on some rows, more than a tile of them and not a whole number."""

    def check() -> str:
        x = mx.array(np.random.default_rng(0).normal(size=(300, packed.k)).astype(np.float32)).astype(weight.dtype)
        got = gemm_act.gemm_act(x, packed, bias, activation=name)
        again = gemm_act.gemm_act(x, packed, bias, activation=name)
        mx.eval(got, again)
        wide = [None if array is None else np.array(array.astype(mx.float32)) for array in (x, weight, bias)]
        wanted = gemm_act.reference(wide[0], wide[1], wide[2], name)  # type: ignore[arg-type]
        tolerance = TOLERANCE[str(weight.dtype).rsplit(".")[-1]]
        first, second = (np.array(result.astype(mx.float32)) for result in (got, again))
        if not np.array_equal(first, second):
            return "two runs of it differ"
        error = relative_error(first, wanted)
        return "" if error <= tolerance else f"it differs from float64 by {error:.2g} of the largest value"

    return kernels.admit(FUSED, (*weight.shape, name, weight.dtype, bias is None), check)

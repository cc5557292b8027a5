"""The first product of an MLP with its activation: in one kernel on a Hopper GPU, in two steps elsewhere."""

from collections.abc import Callable

import mlx.core as mx
from fletcher_kernels import gemm_act
from fletcher_kernels.activate import KINDS
from fletcher_kernels.kernel import float64
from fletcher_kernels.selection import FUSED, KernelSet

from fletcher_core.engines.mlx.product import disagreement, linear, trial
from fletcher_core.models.architecture import Activation


def activated_product(
    weight: mx.array, bias: mx.array | None, activation: Activation, *, gated: bool, kernels: KernelSet
) -> Callable[[mx.array], mx.array]:
    """act(x @ weight^T + bias), [T, k] -> [T, n]; gated: silu(gate) * up of the halves of n, [T, n / 2].

    The fused kernel is checked against float64 the first time that a weight of this shape comes; if it fails, it is
    replaced for good.
    """
    mx.eval(weight, *([] if bias is None else [bias]))
    name: gemm_act.Activation = "swiglu" if gated else activation
    shape = (weight.shape[0], weight.shape[1])
    fused = kernels.dialect == "cuda" and FUSED not in kernels.replaced
    if fused and gemm_act.supported(shape, weight.dtype, gated=gated):
        packed = gemm_act.pack_weight(weight, gated=gated)
        if _holds(packed, weight, bias, name, kernels):
            return lambda x: gemm_act.gemm_act(x, packed, bias, activation=name)
    if gated:
        return lambda x: kernels.run("swiglu", [linear(x, weight)])[0]

    kind = KINDS.index(activation)
    return lambda x: kernels.run("activate", [linear(x, weight, bias)], kind=kind)[0]


def _holds(
    packed: gemm_act.PackedWeight,
    weight: mx.array,
    bias: mx.array | None,
    name: gemm_act.Activation,
    kernels: KernelSet,
) -> bool:
    def check() -> str:
        x = trial(weight)
        wanted = gemm_act.reference(float64(x), float64(weight), None if bias is None else float64(bias), name)
        return disagreement(lambda: gemm_act.gemm_act(x, packed, bias, activation=name), wanted, weight)

    return kernels.admit(FUSED, (*weight.shape, name, weight.dtype, bias is None), check)

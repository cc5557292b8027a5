"""Query, key and value; a rotary model's are turned inside their product on a Hopper GPU, else by a kernel after it."""

from collections.abc import Callable

import mlx.core as mx
from fletcher_kernels import gemm_act
from fletcher_kernels.kernel import float64
from fletcher_kernels.rope import ROPE
from fletcher_kernels.selection import FUSED, KernelSet

from fletcher_core.engines.mlx.product import disagreement, linear, trial

# Positions of the tokens, cosines and sines by position, as the kernel `rope` takes them.
Turn = tuple[mx.array, mx.array, mx.array]
# (x [T, h], turn) -> (qk, qkv) as the kernel `attention` takes them.
Product = Callable[[mx.array, Turn | None], tuple[mx.array, mx.array]]


def query_key_value(
    weight: mx.array,
    bias: mx.array | None,
    heads: int,
    angles: tuple[mx.array, mx.array] | None,
    kernels: KernelSet,
) -> Product:
    """The product with `weight` [3 h, h] and `bias` [3 h].

    `angles`, cosines and sines by position, of a rotary model; its product needs a `Turn`, any other takes None.
    """

    def plain(x: mx.array, _: Turn | None) -> tuple[mx.array, mx.array]:
        qkv = linear(x, weight, bias)
        return qkv, qkv

    def turned_after(x: mx.array, turn: Turn | None) -> tuple[mx.array, mx.array]:
        assert turn is not None
        qkv = linear(x, weight, bias)
        return kernels.run("rope", [qkv, *turn], heads=heads)[0], qkv

    mx.eval(weight, *([] if bias is None else [bias]))
    if angles is None:
        return plain
    return _turned_inside(weight, bias, heads, angles, kernels) or turned_after


def _turned_inside(
    weight: mx.array, bias: mx.array | None, heads: int, angles: tuple[mx.array, mx.array], kernels: KernelSet
) -> Product | None:
    """The fused kernel, if it covers the sizes and holds to float64 in a trial."""
    head_dim = weight.shape[0] // 3 // heads
    shape = (weight.shape[0], weight.shape[1])
    may_run = kernels.dialect == "cuda" and not {FUSED, ROPE.name} & kernels.replaced.keys()
    if not may_run or not gemm_act.supported(shape, weight.dtype, head_dim=head_dim):
        return None
    packed = gemm_act.pack_weight(weight, head_dim=head_dim)

    def product(x: mx.array, turn: Turn | None) -> tuple[mx.array, mx.array]:
        qkv = gemm_act.gemm_act(x, packed, bias, activation="rope", turn=turn)
        return qkv, qkv

    def check() -> str:
        x = trial(weight)
        positions = mx.arange(x.shape[0], dtype=mx.int32) * 7 % angles[0].shape[0]
        turn = (positions, *angles)
        wanted = gemm_act.reference(float64(x), float64(weight), None if bias is None else float64(bias), "none")
        (turned,) = ROPE.reference([wanted, *(float64(array) for array in turn)], {"heads": heads})
        wanted[:, : turned.shape[1]] = turned
        return disagreement(lambda: product(x, turn)[0], wanted, weight)

    return product if kernels.admit(FUSED, (*weight.shape, "rope", weight.dtype, bias is None), check) else None

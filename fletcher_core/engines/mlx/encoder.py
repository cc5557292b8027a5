"""The encoder over packed tokens, in MLX: products by MLX, all else by our kernels or what stands in for them.

T = tokens of the batch, h = hidden size, i = intermediate size. Activations are [T, h] in the compute type; norms,
softmax and pooling compute in float32 inside their kernels.
"""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from fletcher_kernels.norm import epsilon_array
from fletcher_kernels.pool import POOLING
from fletcher_kernels.selection import KernelSet

from fletcher_core.engines.mlx.activated import activated_product
from fletcher_core.engines.mlx.batch import DeviceBatch
from fletcher_core.engines.mlx.product import linear
from fletcher_core.engines.mlx.query_key_value import Turn, query_key_value
from fletcher_core.models import Architecture, LayerWeights, Weights
from fletcher_core.models.package import Pooling


class Layer:
    """One encoder block."""

    def __init__(
        self,
        a: Architecture,
        w: LayerWeights,
        dtype: mx.Dtype,
        kernels: KernelSet,
        params: mx.array,
        angles: tuple[mx.array, mx.array] | None,
    ):
        self.architecture = a
        self.kernels = kernels
        self.params = params
        up = w.up if w.gate is None else np.concatenate([w.gate, w.up])

        def upload(array: np.ndarray | None) -> mx.array:
            return mx.zeros(a.hidden_size, dtype) if array is None else mx.array(array).astype(dtype)

        self.out, self.down = upload(w.attention_out), upload(w.down)
        qkv, qkv_bias = upload(w.qkv), None if w.qkv_bias is None else upload(w.qkv_bias)
        self.qkv = query_key_value(qkv, qkv_bias, a.heads, angles, kernels)
        up_bias = None if w.up_bias is None else upload(w.up_bias)
        self.inner = activated_product(upload(up), up_bias, a.activation, gated=a.gated, kernels=kernels)
        self.biased = w.attention_out_bias is not None
        self.out_bias, self.down_bias = upload(w.attention_out_bias), upload(w.down_bias)
        self.attention_norm = upload(w.attention_norm), upload(w.attention_norm_bias)
        self.output_norm = upload(w.output_norm), upload(w.output_norm_bias)

    @property
    def arrays(self) -> list[mx.array]:
        """Weights to be evaluated at load; those of the products are already."""
        found = [value for value in vars(self).values() if isinstance(value, mx.array)]
        return [*found, *self.attention_norm, *self.output_norm]

    def __call__(self, x: mx.array, batch: DeviceBatch, turn: Turn | None, *, last: bool) -> mx.array:
        """[T, h] -> [T, h]; `turn` is positions, cosines and sines of a rotary model; the `last` one gives float32."""
        heads = self.architecture.heads
        qk, qkv = self.qkv(x, turn)
        (mixed,) = self.kernels.run("attention", [qk, qkv, batch.tiles], heads=heads)
        x = self._add_norm(linear(mixed, self.out), x, self.out_bias, self.attention_norm, wide=False)
        return self._add_norm(linear(self.inner(x), self.down), x, self.down_bias, self.output_norm, wide=last)

    def _add_norm(
        self, y: mx.array, x: mx.array, bias: mx.array, norm: tuple[mx.array, mx.array], *, wide: bool
    ) -> mx.array:
        (out,) = self.kernels.run("add_norm", [y, x, bias, *norm, self.params], has_bias=self.biased, wide=wide)
        return out


class Encoder:
    """Embedding lookup, blocks and pooling of one checkpoint in one compute type."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        dtype: mx.Dtype,
        kernels: KernelSet,
        *,
        pooling: Pooling,
        normalize: bool,
        dimension: int,
    ):
        a, w = architecture, weights
        self.architecture = a
        self.kernels = kernels
        self.params = mx.array(epsilon_array(a.norm_epsilon))
        self.pooling = POOLING[pooling]
        self.normalize = normalize
        self.dimension = dimension
        # The row of token type 0 goes into a table that every token reads anyway.
        placed = w.positions is not None
        self.words = mx.array(w.words if placed else w.words + w.token_type).astype(dtype)
        places = w.positions + w.token_type if w.positions is not None else np.zeros((1, a.hidden_size), np.float32)
        self.places = mx.array(places).astype(dtype)
        self.placed = placed
        self.norm = mx.array(w.norm).astype(dtype), mx.array(w.norm_bias).astype(dtype)

        def table(values: np.ndarray) -> mx.array:
            return mx.array(values.astype(np.float32))

        angles = a.rotary_angles()
        self.angles = None if angles is None else (table(np.cos(angles)), table(np.sin(angles)))
        self.layers: list[Layer] = []
        replaced: set[str] | None = None
        while replaced != set(kernels.replaced):  # once more without a kernel that failed: no layer may keep it
            replaced = set(kernels.replaced)
            self.layers = [Layer(a, layer, dtype, kernels, self.params, self.angles) for layer in w.layers]
        mx.eval(self.words, self.places, *self.norm, *(layer.arrays for layer in self.layers))

    def steps(self, batch: DeviceBatch) -> Iterator[mx.array]:
        """The batch's [T, h] after the embedding and after each block: where work can be cut into pieces."""
        x, positions = self.kernels.run(
            "embed_norm",
            [batch.ids, batch.cu_seqlens, batch.sizes, self.words, self.places, *self.norm, self.params],
            has_places=self.placed,
        )
        yield x
        turn = None if self.angles is None else (positions, *self.angles)
        for layer in self.layers:
            x = layer(x, batch, turn, last=layer is self.layers[-1])
            yield x

    def pool(self, x: mx.array, batch: DeviceBatch) -> mx.array:
        """[T, h] -> float32 [n, dimension]."""
        vectors, _flags = self.kernels.run(
            "pool",
            [x, batch.cu_seqlens],
            sequences=batch.sequences,
            dimension=self.dimension,
            pooling=self.pooling,
            normalize=self.normalize,
        )
        return vectors

"""The encoder that a careful user of PyTorch writes for speed, for the benchmark's peers, and how he batches texts.

Stacked projections, attention through `scaled_dot_product_attention` on padded batches or `varlen_attn` on packed ones.
Each piece is compiled on its own and all blocks share one compilation: the same kernels as from the whole model, in a
tenth of the time. All in bfloat16. T = tokens, B = sequences, S = padded length, H = heads, D = head dim.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fletcher_core.models import Architecture, LayerWeights, Weights
from fletcher_core.tokens import TokenBatch

BF16 = torch.bfloat16
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
torch._dynamo.config.recompile_limit = 64


class Block(nn.Module):
    def __init__(self, architecture: Architecture, weights: LayerWeights):
        super().__init__()
        self.architecture = architecture
        arrays = dict(vars(weights))
        gate = arrays.pop("gate")
        if gate is not None:  # one product for both
            arrays["up"] = np.concatenate([gate, arrays["up"]])
        for name, value in arrays.items():
            setattr(self, name, None if value is None else parameter(value))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, context: tuple) -> Tensor:
        a = self.architecture
        qkv = F.linear(x, self.qkv, self.qkv_bias).unflatten(-1, (3, a.heads, a.head_dim))
        query, key, value = qkv.unbind(-3)
        if rope is not None:
            query, key = rotate(query, *rope), rotate(key, *rope)
        mixed = F.linear(attend(query, key, value, context).flatten(-2), self.attention_out, self.attention_out_bias)
        x = norm(x + mixed, self.attention_norm, self.attention_norm_bias, a.norm_epsilon)
        inner = F.linear(x, self.up, self.up_bias)
        if a.gated:
            gate, up = inner.chunk(2, -1)
            inner = F.silu(gate) * up
        else:
            inner = F.gelu(inner)
        x = x + F.linear(inner, self.down, self.down_bias)
        return norm(x, self.output_norm, self.output_norm_bias, a.norm_epsilon)


class Encoder(nn.Module):
    """ids [..., T], positions [T] -> token vectors [..., T, h] with bf16 weights on the device."""

    def __init__(self, architecture: Architecture, weights: Weights):
        super().__init__()
        self.architecture = architecture
        words = weights.words if weights.positions is not None else weights.words + weights.token_type
        self.words = parameter(words)
        self.positions = None if weights.positions is None else parameter(weights.positions + weights.token_type)
        self.norm, self.norm_bias = parameter(weights.norm), parameter(weights.norm_bias)
        self.blocks = nn.ModuleList(Block(architecture, layer) for layer in weights.layers)

    def embed(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        a, x = self.architecture, F.embedding(ids, self.words)
        if self.positions is not None:
            x = x + F.embedding(positions, self.positions)
        x = norm(x, self.norm, self.norm_bias, a.norm_epsilon)
        if a.rope_theta is None:
            return x, None
        half = torch.arange(a.head_dim // 2, device=x.device, dtype=torch.float32)
        angles = positions[:, None, None].float() * a.rope_theta ** (-2.0 * half / a.head_dim)
        return x, (angles.cos().to(x.dtype), angles.sin().to(x.dtype))


def embed(encoder: Encoder, ids: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    return encoder.embed(ids, positions)


def block(layer: Block, x: Tensor, rope: tuple[Tensor, Tensor] | None, context: tuple) -> Tensor:
    return layer(x, rope, context)


def parameter(value: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(value)).to(DEVICE, BF16), requires_grad=False)


def norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def attend(query: Tensor, key: Tensor, value: Tensor, context: tuple) -> Tensor:
    """[..., T, H, D] each; `context` is (mask or None,) for padded batches, (cu_seqlens, longest) for packed ones."""
    if len(context) == 1:
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=context[0]).transpose(1, 2)
    cu_seqlens, longest = context
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, longest, longest)
    sequence = torch.searchsorted(cu_seqlens, torch.arange(len(query), dtype=cu_seqlens.dtype), right=True)
    mask = sequence[:, None] == sequence  # on a CPU there is no such kernel, and only the rest is tried
    parts = (part.transpose(0, 1)[None] for part in (query, key, value))
    return F.scaled_dot_product_attention(*parts, attn_mask=mask)[0].transpose(0, 1)


def mean_pool(x: Tensor, lengths: Tensor) -> Tensor:
    keep = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    mean = (x.float() * keep[..., None]).sum(1) / lengths[:, None]
    return F.normalize(mean, dim=1)


class CompiledEncoder:
    """The encoder with its pieces compiled under `settings`; `padded` and `packed` take one batch's tensors on the
    device and give float32 vectors [B, h]."""

    def __init__(self, architecture: Architecture, weights: Weights, **settings: object):
        torch._dynamo.reset()
        self.encoder = Encoder(architecture, weights)
        self.embed, self.block, self.pool = (torch.compile(piece, **settings) for piece in (embed, block, mean_pool))

    def hidden(self, ids: Tensor, positions: Tensor, context: tuple) -> Tensor:
        x, rope = self.embed(self.encoder, ids, positions)
        for layer in self.encoder.blocks:
            x = self.block(layer, x, rope, context)
        return x

    def padded(self, ids: Tensor, lengths: Tensor, masked: bool = True) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32)
        mask = None
        if masked:
            mask = torch.zeros(ids.shape, dtype=BF16, device=ids.device)
            mask = mask.masked_fill_(positions >= lengths[:, None], -torch.inf)[:, None, None, :]
        return self.pool(self.hidden(ids, positions, (mask,)), lengths)

    def packed(self, ids: Tensor, positions: Tensor, cu_seqlens: Tensor, longest: int, count: int) -> Tensor:
        x = self.hidden(ids, positions, (cu_seqlens, longest)).float()
        mean = torch.segment_reduce(x, "mean", offsets=cu_seqlens[: count + 1].long(), axis=0, unsafe=True)
        return F.normalize(mean, dim=1)


Batches = list[tuple[np.ndarray, tuple]]


def pin(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if CUDA else tensor


def padded_batches(tokens: TokenBatch, budget: int, multiple: int) -> Batches:
    """Sorted by length, cut by padded tokens, widths rounded up to a multiple: (rows, (ids [B, S], lengths [B]))."""
    order, batches, start = np.argsort(-tokens.lengths, kind="stable"), [], 0
    while start < len(order):
        width = -(-int(tokens.lengths[order[start]]) // multiple) * multiple
        rows = order[start : start + max(1, budget // width)]
        batch, ids = tokens.take(rows), np.zeros((len(rows), width), np.int32)
        ids[np.arange(width) < batch.lengths[:, None]] = batch.ids
        batches.append((rows, (pin(ids), pin(batch.lengths.astype(np.int32)))))
        start += len(rows)
    return batches


def packed_batches(tokens: TokenBatch, budget: int, static: bool = False) -> Batches:
    """Texts as they come, in about equal batches: (rows, (ids, positions, cu_seqlens, longest, count)).

    `static` fills all batches up to the same sizes, with one more sequence of zeros and empty ones after it.
    """
    parts = max(1, round(tokens.cu_seqlens[-1] / budget))
    bounds = np.searchsorted(tokens.cu_seqlens, np.linspace(0, tokens.cu_seqlens[-1], parts + 1))
    bounds = np.unique(bounds)
    size = -(-int(np.diff(tokens.cu_seqlens[bounds]).max()) // 128) * 128
    most, longest, batches = int(np.diff(bounds).max()), -(-int(tokens.lengths.max()) // 128) * 128, []
    for start, stop in pairwise(bounds):
        rows = np.arange(start, stop)
        batch = tokens.take(rows)
        ids, cu, count = batch.ids, batch.cu_seqlens, len(rows)
        positions = np.arange(len(ids)) - np.repeat(cu[:-1], batch.lengths)
        if static:
            ids, positions = (np.pad(array, (0, size - len(array))) for array in (ids, positions))
            cu = np.concatenate([cu, np.full(most + 1 - count, size)])
        tensors = (pin(ids), pin(positions.astype(np.int32)), pin(cu.astype(np.int32)))
        batches.append((rows, (*tensors, longest, count)))
    return batches

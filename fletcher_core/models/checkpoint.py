"""`model.safetensors` in, the encoder's weights under one set of names out.

Every tensor is checked against the shape that `config.json` implies, so that a wrong checkpoint fails at load with the
tensor's name and both shapes, never as a wrong vector. The check reads the file's header alone, whose offsets
safetensors has held against the file's size: no memory is taken for what is not there. No other format is read, and
pickles least of all. Layouts follow PyTorch's Linear: `[out, in]`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from fletcher_core.errors import ModelError
from fletcher_core.models.architecture import Architecture
from fletcher_core.models.json_file import brief

# Element types of tensors, as safetensors names them.
_FLOATS = ("F16", "F32", "F64")

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerWeights:
    """One encoder block; h = hidden, i = intermediate size; biases and `gate` are None where the model has none."""

    qkv: Array  # [3h, h], query, key and value stacked
    qkv_bias: Array | None  # [3h]
    attention_out: Array  # [h, h]
    attention_out_bias: Array | None  # [h]
    attention_norm: Array  # [h]
    attention_norm_bias: Array  # [h]
    gate: Array | None  # [i, h]
    up: Array  # [i, h]
    up_bias: Array | None  # [i]
    down: Array  # [h, i]
    down_bias: Array | None  # [h]
    output_norm: Array  # [h]
    output_norm_bias: Array  # [h]


@dataclass(frozen=True)
class Weights:
    """All weights of an encoder as float32. `positions` is None for rotary models."""

    words: Array  # [vocab, h]
    positions: Array | None  # [max_positions, h]
    token_type: Array  # [h], the row of token type 0: the only one that single texts use
    norm: Array  # [h]
    norm_bias: Array  # [h]
    layers: tuple[LayerWeights, ...]


def load_weights(folder: Path, architecture: Architecture) -> Weights:
    """Read and check `model.safetensors` in `folder`.

    Raises:
        ModelError: the file is missing or damaged; a tensor is missing or has another shape than `config.json` says.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        pickled = sorted(file.name for ending in _PICKLED for file in folder.glob(f"*{ending}"))
        if pickled:
            raise ModelError(
                f"{path} is missing, and {', '.join(pickled)} beside it is not read: such files are pickles, which can "
                "run any code while they load. Take a revision of the model that has model.safetensors, or convert the "
                "weights where you trust them"
            )
        raise ModelError(
            f"{path} is missing: Fletcher reads safetensors weights in one file; download the model again, "
            "or convert its weights with safetensors"
        )
    try:
        with safe_open(str(path), framework="numpy") as file:
            tensors = _Tensors(path, file)
            return _bert(tensors, architecture) if architecture.family == "bert" else _nomic(tensors, architecture)
    except SafetensorError as error:
        raise ModelError(
            f"{path} is not a valid safetensors file ({brief(error)}): download the model again"
        ) from error
    except OSError as error:  # an empty file cannot be mapped
        raise ModelError(f"{path} cannot be read ({brief(error)}): download the model again") from error


class _Tensors:
    """Tensors of one file by name, whatever prefix the checkpoint was saved with."""

    def __init__(self, path: Path, file: Any):
        self.path = path
        self.names = set(file.keys())
        self._file = file
        anchor = "word_embeddings.weight"
        found = sorted((name for name in self.names if name.endswith("embeddings." + anchor)), key=len)
        if not found:
            raise ModelError(f"{path} has no tensor 'embeddings.{anchor}': it is not a BERT or NomicBERT encoder")
        self.prefix = found[0].removesuffix("embeddings." + anchor)

    def has(self, name: str) -> bool:
        return self.prefix + name in self.names

    def take(self, name: str, *shape: int) -> Array:
        full = self.prefix + name
        if full not in self.names:
            raise ModelError(f"{self.path} has no tensor {brief(repr(full))} (expected with shape {list(shape)})")
        header = self._file.get_slice(full)
        if tuple(header.get_shape()) != shape:
            raise ModelError(
                f"{self.path}: tensor {brief(repr(full))} has shape {brief(header.get_shape())}, "
                f"but config.json implies {list(shape)}; the weights and the configuration are of different models"
            )
        if header.get_dtype() not in _FLOATS:
            raise ModelError(
                f"{self.path}: tensor {brief(repr(full))} is of {header.get_dtype()}, and Fletcher reads "
                f"{', '.join(_FLOATS)}: save the weights in one of these"
            )
        tensor = self._file.get_tensor(full)
        return np.ascontiguousarray(tensor, dtype=np.float32)


def _bert(t: _Tensors, a: Architecture) -> Weights:
    h, i = a.hidden_size, a.intermediate_size

    def layer(n: int) -> LayerWeights:
        p = f"encoder.layer.{n}."
        parts = [f"{p}attention.self.{part}" for part in ("query", "key", "value")]
        return LayerWeights(
            qkv=np.concatenate([t.take(f"{part}.weight", h, h) for part in parts]),
            qkv_bias=np.concatenate([t.take(f"{part}.bias", h) for part in parts]),
            attention_out=t.take(f"{p}attention.output.dense.weight", h, h),
            attention_out_bias=t.take(f"{p}attention.output.dense.bias", h),
            attention_norm=t.take(f"{p}attention.output.LayerNorm.weight", h),
            attention_norm_bias=t.take(f"{p}attention.output.LayerNorm.bias", h),
            gate=None,
            up=t.take(f"{p}intermediate.dense.weight", i, h),
            up_bias=t.take(f"{p}intermediate.dense.bias", i),
            down=t.take(f"{p}output.dense.weight", h, i),
            down_bias=t.take(f"{p}output.dense.bias", h),
            output_norm=t.take(f"{p}output.LayerNorm.weight", h),
            output_norm_bias=t.take(f"{p}output.LayerNorm.bias", h),
        )

    e = "embeddings."
    return Weights(
        words=t.take(f"{e}word_embeddings.weight", a.vocab_size, h),
        positions=t.take(f"{e}position_embeddings.weight", a.max_positions, h),
        token_type=t.take(f"{e}token_type_embeddings.weight", a.type_vocab_size, h)[0],
        norm=t.take(f"{e}LayerNorm.weight", h),
        norm_bias=t.take(f"{e}LayerNorm.bias", h),
        layers=tuple(layer(n) for n in range(a.layers)),
    )


def _nomic(t: _Tensors, a: Architecture) -> Weights:
    published = t.has("emb_ln.weight")  # the names of the model's own code rather than those of transformers
    layer = _nomic_published_layer if published else _nomic_layer
    norm = "emb_ln" if published else "embeddings.LayerNorm"
    return Weights(
        words=t.take("embeddings.word_embeddings.weight", a.vocab_size, a.hidden_size),
        positions=None,
        token_type=t.take("embeddings.token_type_embeddings.weight", a.type_vocab_size, a.hidden_size)[0],
        norm=t.take(f"{norm}.weight", a.hidden_size),
        norm_bias=t.take(f"{norm}.bias", a.hidden_size),
        layers=tuple(layer(t, a, n) for n in range(a.layers)),
    )


def _nomic_layer(t: _Tensors, a: Architecture, n: int) -> LayerWeights:
    h, i, p = a.hidden_size, a.intermediate_size, f"layers.{n}."
    return LayerWeights(
        qkv=np.concatenate([t.take(f"{p}self_attn.{part}_proj.weight", h, h) for part in "qkv"]),
        qkv_bias=None,
        attention_out=t.take(f"{p}self_attn.o_proj.weight", h, h),
        attention_out_bias=None,
        attention_norm=t.take(f"{p}post_attention_layernorm.weight", h),
        attention_norm_bias=t.take(f"{p}post_attention_layernorm.bias", h),
        gate=t.take(f"{p}mlp.gate_proj.weight", i, h),
        up=t.take(f"{p}mlp.up_proj.weight", i, h),
        up_bias=None,
        down=t.take(f"{p}mlp.down_proj.weight", h, i),
        down_bias=None,
        output_norm=t.take(f"{p}post_mlp_layernorm.weight", h),
        output_norm_bias=t.take(f"{p}post_mlp_layernorm.bias", h),
    )


def _nomic_published_layer(t: _Tensors, a: Architecture, n: int) -> LayerWeights:
    h, i, p = a.hidden_size, a.intermediate_size, f"encoder.layers.{n}."
    return LayerWeights(
        qkv=t.take(f"{p}attn.Wqkv.weight", 3 * h, h),
        qkv_bias=None,
        attention_out=t.take(f"{p}attn.out_proj.weight", h, h),
        attention_out_bias=None,
        attention_norm=t.take(f"{p}norm1.weight", h),
        attention_norm_bias=t.take(f"{p}norm1.bias", h),
        gate=t.take(f"{p}mlp.fc12.weight", i, h),
        up=t.take(f"{p}mlp.fc11.weight", i, h),
        up_bias=None,
        down=t.take(f"{p}mlp.fc2.weight", h, i),
        down_bias=None,
        output_norm=t.take(f"{p}norm2.weight", h),
        output_norm_bias=t.take(f"{p}norm2.bias", h),
    )

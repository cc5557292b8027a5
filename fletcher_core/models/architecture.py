"""The shape of an encoder, read from a checkpoint's `config.json`.

Two families: BERT (learned positions, GELU) and NomicBERT (rotary positions, SwiGLU). NomicBERT's configuration
comes in two dialects, the one of transformers and the GPT-2 style one of the model's first publication.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import ModelError

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Family = Literal["bert", "nomic_bert"]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
}


@dataclass(frozen=True)
class Architecture:
    """Sizes and choices of one encoder; units are elements, positions and epsilon as in the checkpoint."""

    family: Family
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    activation: Activation
    max_positions: int
    type_vocab_size: int
    norm_epsilon: float
    rope_theta: float | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def gated(self) -> bool:
        """Whether the MLP is `down(act(gate(x)) * up(x))` rather than `down(act(up(x)))`."""
        return self.family == "nomic_bert"

    def rotary_angles(self) -> npt.NDArray[np.float64] | None:
        """Angle by position and pair, float64 [max_positions, head_dim / 2], or None for learned positions."""
        if self.rope_theta is None:
            return None
        half = self.head_dim // 2
        frequencies = self.rope_theta ** -(np.arange(half, dtype=np.float64) / half)
        angles: npt.NDArray[np.float64] = np.arange(self.max_positions, dtype=np.float64)[:, None] * frequencies
        return angles

    def flops_per_token(self) -> int:
        """Floating-point operations of the matrix products for one token, attention scores left out."""
        mlp = (3 if self.gated else 2) * self.hidden_size * self.intermediate_size
        return 2 * self.layers * (4 * self.hidden_size * self.hidden_size + mlp)

    @classmethod
    def read(cls, folder: Path) -> "Architecture":
        """Read `config.json` in `folder`.

        Raises:
            ModelError: the file is missing or damaged, a field is missing, or the kind of model is not supported.
        """
        path = folder / "config.json"
        config = read_json(path)
        kind = config.get("model_type")
        try:
            if kind == "bert":
                return _bert(config, path)
            if kind == "nomic_bert":
                return _nomic(config, path)
        except KeyError as missing:
            raise ModelError(
                f"{path} has no field {missing}: the checkpoint is incomplete, download it again"
            ) from missing
        raise ModelError(
            f"{path}: model_type is {kind!r}, and Fletcher runs 'bert' (MiniLM, BGE, E5, GTE-v1, Arctic) and "
            "'nomic_bert'; choose a model of one of these families"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or a `ModelError` that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing: a model folder needs config.json, model.safetensors and tokenizer.json"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _activation(name: str, path: Path) -> Activation:
    if name not in _ACTIVATIONS:
        raise ModelError(f"{path}: activation {name!r} is not supported; known are {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _check_heads(hidden_size: int, heads: int, path: Path) -> None:
    if heads < 1 or hidden_size % heads:
        raise ModelError(f"{path}: hidden size {hidden_size} is not a multiple of {heads} attention heads")


def _bert(config: dict[str, Any], path: Path) -> Architecture:
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            f"{path}: position_embedding_type {config['position_embedding_type']!r} is not supported, only 'absolute'"
        )
    return _transformers_style(config, path, "bert", None)


def _transformers_style(config: dict[str, Any], path: Path, family: Family, rope_theta: float | None) -> Architecture:
    _check_heads(config["hidden_size"], config["num_attention_heads"], path)
    return Architecture(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        activation=_activation(config["hidden_act"], path),
        max_positions=config["max_position_embeddings"],
        type_vocab_size=config.get("type_vocab_size", 2),
        norm_epsilon=config.get("layer_norm_eps", 1e-12),
        rope_theta=rope_theta,
    )


def _nomic(config: dict[str, Any], path: Path) -> Architecture:
    if "n_embd" in config:
        return _nomic_published(config, path)
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config["rope_theta"]}
    if rope.get("rope_type", "default") != "default":
        raise ModelError(f"{path}: rope_type {rope['rope_type']!r} is not supported, only 'default'")
    return _transformers_style(config, path, "nomic_bert", float(rope["rope_theta"]))


def _nomic_published(config: dict[str, Any], path: Path) -> Architecture:
    refused = {
        "prenorm": (False, "post-norm"),
        "rotary_emb_interleaved": (False, "rotary halves"),
        "use_rms_norm": (False, "LayerNorm"),
        "rotary_emb_fraction": (1.0, "rotation of the whole head"),
        "qkv_proj_bias": (False, "no biases"),
        "mlp_fc1_bias": (False, "no biases"),
        "mlp_fc2_bias": (False, "no biases"),
        "activation_function": ("swiglu", "SwiGLU"),
    }
    for field, (wanted, meaning) in refused.items():
        if config.get(field, wanted) not in (wanted, None):
            raise ModelError(
                f"{path}: {field} is {config[field]!r}; Fletcher runs NomicBERT with {meaning} only ({wanted!r})"
            )
    if config.get("moe_every_n_layers", 0) > 0:
        raise ModelError(f"{path}: mixture-of-experts NomicBERT is not supported; use nomic-embed-text-v1 or v1.5")
    _check_heads(config["n_embd"], config["n_head"], path)
    return Architecture(
        family="nomic_bert",
        vocab_size=config["vocab_size"],
        hidden_size=config["n_embd"],
        layers=config["n_layer"],
        heads=config["n_head"],
        intermediate_size=config.get("n_inner") or 4 * config["n_embd"],
        activation="silu",
        # Without rotary scaling the model is only valid up to the length that it was trained on.
        max_positions=config.get("max_trained_positions") or config["n_positions"],
        type_vocab_size=config.get("type_vocab_size", 2),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-12),
        rope_theta=float(config["rotary_emb_base"]),
    )

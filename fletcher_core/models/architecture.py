"""The shape of an encoder, read from a checkpoint's `config.json`.

Two families: BERT (learned positions, GELU) and NomicBERT (rotary positions, SwiGLU). NomicBERT's configuration
comes in two dialects, the one of transformers and the GPT-2 style one of the model's first publication.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import ModelError
from fletcher_core.models.json_file import brief, entries, number, read_json, whole

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

# Of a rotary model, whose positions no tensor of the file bears out: tables of so many rows are made.
_MAX_ROTARY_POSITIONS = 131_072


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
            ModelError: the file is missing or damaged, a field is missing or has a value that cannot be, or the kind
                of model is not supported.
        """
        path = folder / "config.json"
        config = read_json(path)
        kind = config.get("model_type")
        if kind == "bert":
            return _bert(config, path)
        if kind == "nomic_bert":
            return _nomic(config, path)
        raise ModelError(
            f"{path}: model_type is {brief(repr(kind))}, and Fletcher runs 'bert' (MiniLM, BGE, E5, GTE-v1, Arctic) "
            "and 'nomic_bert'; choose a model of one of these families"
        )


def _activation(config: dict[str, Any], path: Path) -> Activation:
    name = config.get("hidden_act")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ModelError(f"{path}: activation {brief(repr(name))} is not supported; known are {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _check_heads(architecture: Architecture, path: Path) -> Architecture:
    hidden_size, heads = architecture.hidden_size, architecture.heads
    if hidden_size % heads:
        raise ModelError(f"{path}: hidden size {hidden_size} is not a multiple of {heads} attention heads")
    if architecture.rope_theta is not None and architecture.head_dim % 2:
        raise ModelError(f"{path}: heads of {architecture.head_dim} elements cannot be rotated by halves")
    return architecture


def _bert(config: dict[str, Any], path: Path) -> Architecture:
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ModelError(f"{path}: position_embedding_type {brief(repr(positions))} is not supported, only 'absolute'")
    return _transformers_style(config, path, "bert", None)


def _transformers_style(config: dict[str, Any], path: Path, family: Family, rope_theta: float | None) -> Architecture:
    architecture = Architecture(
        family=family,
        vocab_size=whole(config, "vocab_size", path),
        hidden_size=whole(config, "hidden_size", path),
        layers=whole(config, "num_hidden_layers", path),
        heads=whole(config, "num_attention_heads", path),
        intermediate_size=whole(config, "intermediate_size", path),
        activation=_activation(config, path),
        max_positions=_positions(config, "max_position_embeddings", path, rotary=rope_theta is not None),
        type_vocab_size=whole(config, "type_vocab_size", path, default=2),
        norm_epsilon=_epsilon(config, "layer_norm_eps", path),
        rope_theta=rope_theta,
    )
    return _check_heads(architecture, path)


def _nomic(config: dict[str, Any], path: Path) -> Architecture:
    if "n_embd" in config:
        return _nomic_published(config, path)
    rope = entries(config, "rope_parameters", path) or config
    kind = rope.get("rope_type", "default")
    if kind != "default":
        raise ModelError(f"{path}: rope_type {brief(repr(kind))} is not supported, only 'default'")
    return _transformers_style(config, path, "nomic_bert", _theta(rope, "rope_theta", path))


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
                f"{path}: {field} is {brief(repr(config[field]))}; "
                f"Fletcher runs NomicBERT with {meaning} only ({wanted!r})"
            )
    if whole(config, "moe_every_n_layers", path, least=0, default=0):
        raise ModelError(f"{path}: mixture-of-experts NomicBERT is not supported; use nomic-embed-text-v1 or v1.5")
    hidden = whole(config, "n_embd", path)
    # Without rotary scaling the model is only valid up to the length that it was trained on.
    trained = "max_trained_positions" if config.get("max_trained_positions") else "n_positions"
    architecture = Architecture(
        family="nomic_bert",
        vocab_size=whole(config, "vocab_size", path),
        hidden_size=hidden,
        layers=whole(config, "n_layer", path),
        heads=whole(config, "n_head", path),
        intermediate_size=whole(config, "n_inner", path, least=0, default=0) or 4 * hidden,
        activation="silu",
        max_positions=_positions(config, trained, path, rotary=True),
        type_vocab_size=whole(config, "type_vocab_size", path, default=2),
        norm_epsilon=_epsilon(config, "layer_norm_epsilon", path),
        rope_theta=_theta(config, "rotary_emb_base", path),
    )
    return _check_heads(architecture, path)


def _positions(config: dict[str, Any], key: str, path: Path, *, rotary: bool) -> int:
    return whole(config, key, path, most=_MAX_ROTARY_POSITIONS) if rotary else whole(config, key, path)


def _epsilon(config: dict[str, Any], key: str, path: Path) -> float:
    return number(config, key, path, least=1e-30, most=1.0, default=1e-12)


def _theta(config: dict[str, Any], key: str, path: Path) -> float:
    return number(config, key, path, least=1.0, most=1e15)

"""Encoder checkpoints: find the folder, read the configuration, load and check the weights."""

from fletcher_core.models.architecture import Architecture
from fletcher_core.models.card import ModelCard
from fletcher_core.models.checkpoint import LayerWeights, Weights, load_weights
from fletcher_core.models.package import ModelPackage
from fletcher_core.models.resolve import resolve_model

__all__ = [
    "Architecture",
    "LayerWeights",
    "ModelCard",
    "ModelPackage",
    "Weights",
    "load_weights",
    "resolve_model",
]

"""What makes two models' vectors the same: a model and its settings in, a digest of all that decides a vector out."""

import hashlib
import json

from fletcher_core.models.package import ModelPackage


def fingerprint(
    package: ModelPackage,
    *,
    normalize: bool,
    dimension: int,
    prompt: str,
    max_length: int,
    long_text: str = "truncate",
    chunk_overlap: int | None = None,
    precision: str = "",
) -> str:
    """SHA-256 (hex). The arguments are as they are in effect: the prompt's text, the length's number.

    Args:
        chunk_overlap: counts where `long_text` is "chunk".
        precision: of the engine; counts where it is "int8", as the floats agree so well that stores may mix them.

    Raises:
        ModelError: a file of the model is missing.
    """
    identity = {
        "model": package.weights_digest(),
        "pooling": package.pooling,
        "normalize": normalize,
        "dimension": dimension,
        "prompt": prompt,
        "max_length": max_length,
        "long_text": long_text,
        "chunk_overlap": chunk_overlap if long_text == "chunk" else None,
    }
    if precision == "int8":
        identity["precision"] = "int8"
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def default_fingerprint(package: ModelPackage) -> str:
    """Of the model as `Embedder.load` takes it without any settings."""
    return fingerprint(
        package,
        normalize=package.normalize,
        dimension=package.architecture.hidden_size,
        prompt=package.prompt_text(None, "document", "passage", "corpus"),
        max_length=package.max_length,
    )

"""The identity of a model as it is declared, without loading it: settings in, the fingerprint of its vectors out."""

import os

from fletcher_core.models.fingerprint import fingerprint
from fletcher_core.models.package import ModelPackage
from fletcher_core.models.resolve import resolve_model


def declared_fingerprint(
    model: str | os.PathLike[str],
    *,
    precision: str = "auto",
    max_length: int | None = None,
    dimension: int | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    long_text: str = "truncate",
    chunk_overlap: int = 32,
) -> str:
    """What `Embedder.load` with these settings would have as `card.fingerprint`; reads the files, starts no engine.

    Raises:
        ModelError: the model is not found or damaged.
    """
    package = ModelPackage.read(resolve_model(os.fspath(model)), os.path.basename(os.fspath(model)))
    return fingerprint(
        package,
        normalize=package.normalize if normalize is None else normalize,
        dimension=package.architecture.hidden_size if dimension is None else dimension,
        prompt=package.prompt_text(prompt, "document", "passage", "corpus"),
        max_length=package.max_length if max_length is None else max_length,
        long_text=long_text,
        chunk_overlap=chunk_overlap,
        precision=precision,
    )

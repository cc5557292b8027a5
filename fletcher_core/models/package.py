"""A model folder as sentence-transformers lays it out: pooling, normalization, prompts, maximum length.

Reads `modules.json` and the files that it names; a bare transformers folder gets the defaults of its kind.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fletcher_core.errors import ModelError
from fletcher_core.models.architecture import Architecture, read_json

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
        prompts = {str(key): str(value) for key, value in (sentence.get("prompts") or {}).items()}
        return cls(
            folder=folder_of_weights,
            name=name or folder.resolve().name,
            architecture=architecture,
            pooling=_pooling(folder / modules["Pooling"]) if "Pooling" in modules else "mean",
            normalize="Normalize" in modules or not modules,
            max_length=_max_length(folder_of_weights, architecture, saved),
            prompts=prompts,
            default_prompt=sentence.get("default_prompt_name"),
        )

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
    try:
        entries = [(entry["type"].rsplit(".", 1)[-1], entry["path"]) for entry in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}): download the model again") from error
    known = {"Transformer", "Pooling", "Normalize"}
    for kind, _ in entries:
        if kind not in known:
            raise ModelError(
                f"{path} asks for a {kind!r} module; Fletcher runs Transformer, Pooling and Normalize only"
            )
    return dict(entries)


def _pooling(folder: Path) -> Pooling:
    path = folder / "config.json"
    config = read_json(path)
    if mode := config.get("pooling_mode"):  # newer files name one mode
        names: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
        if mode in names:
            return names[mode]
        raise ModelError(f"{path}: pooling_mode {mode!r} is not supported; known are {sorted(names)}")
    chosen = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)]
    refused = [flag for flag in _UNSUPPORTED_POOLING if config.get(flag)]
    if len(chosen) != 1 or refused:
        raise ModelError(
            f"{path} asks for {refused + chosen or 'no pooling'}; Fletcher does exactly one of mean, cls and last token"
        )
    return chosen[0]


def _max_length(folder: Path, architecture: Architecture, saved: dict[str, Any]) -> int:
    """The model's own limit: sentence-transformers' value, else the tokenizer's, never above the position table."""
    limit = saved.get("max_seq_length")
    if limit is None:
        limit = _optional(folder / "tokenizer_config.json").get("model_max_length")
    if limit is None or limit > architecture.max_positions:  # 1e30 and the like mean "no limit"
        return architecture.max_positions
    return int(limit)

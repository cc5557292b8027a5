"""Model folders from other people: whatever stands in them, vectors or a ModelError come out, soon and in bounds."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.tiny_models import minilm, nomic
from fletcher_core import Embedder
from fletcher_core.errors import ModelError
from fletcher_core.models import Architecture, ModelPackage, load_weights
from fletcher_core.models.json_file import MAX_BYTES

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "tests" / "data" / "fuzz" / "loader"
SECONDS = os.environ.get("FLETCHER_FUZZ_SECONDS", "2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "model", minilm())


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_what_fuzzing_found_stays_fixed_and_nothing_new_turns_up(tmp_path: Path) -> None:
    """In a process of its own, which forks: this one may have threads. Seed 1; FLETCHER_FUZZ_SECONDS for longer."""
    command = [sys.executable, "-m", "chaos.fuzz_loader", "--seed", "1", "--seconds", SECONDS, "--workers", "1"]
    elsewhere = {**os.environ, "CHAOS_RESULTS": str(tmp_path)}  # not among the figures of `make chaos`
    command += ["--replay", str(KEPT)]
    done = subprocess.run(command, cwd=ROOT, env=elsewhere, capture_output=True, text=True, timeout=600)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["findings"] == [], done.stderr
    assert done.returncode == 0
    assert summary["kept"] == len(list(KEPT.glob("*.json"))) > 0
    assert summary["outcomes"].get("works", 0) > 0  # else the folders that it damages are broken already


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "hidden_size", 10**9),
        ("config.json", "hidden_size", "32"),
        ("config.json", "num_attention_heads", 0),
        ("config.json", "num_attention_heads", True),
        ("config.json", "num_hidden_layers", 10**12),
        ("config.json", "num_hidden_layers", -1),
        ("config.json", "vocab_size", None),
        ("config.json", "intermediate_size", 64.5),
        ("config.json", "max_position_embeddings", 10**12),
        ("config.json", "type_vocab_size", 0),
        ("config.json", "layer_norm_eps", -1.0),
        ("config.json", "layer_norm_eps", float("nan")),
        ("config.json", "hidden_act", ["gelu"]),
        ("config.json", "model_type", {}),
        ("sentence_bert_config.json", "max_seq_length", "256"),
        ("sentence_bert_config.json", "max_seq_length", -1),
        ("sentence_bert_config.json", "max_seq_length", 31.5),
        ("config_sentence_transformers.json", "prompts", ["query: "]),
        ("config_sentence_transformers.json", "prompts", {"query": "\ud800"}),
        ("1_Pooling/config.json", "pooling_mode_cls_token", "no"),
        ("1_Pooling/config.json", "pooling_mode", ["mean"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_file_and_key(folder: Path, name: str, key: str, value: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ModelError) as refused:
        load_weights(folder, ModelPackage.read(folder).architecture)
    said = str(refused.value)
    words = {"hidden_act": "activation", "prompts": "prompt"}.get(key, key)
    assert str(path) in said or "config.json implies" in said
    assert words in said or "config.json implies" in said


def test_a_rotary_model_cannot_ask_for_tables_without_end(tmp_path: Path) -> None:
    """No tensor has so many rows as it has positions, so that the file's size bears nothing out."""
    folder = written(tmp_path, nomic())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**12}))
    with pytest.raises(ModelError, match=r"config\.json: max_position_embeddings is 1000000000000"):
        Architecture.read(folder)


def test_files_over_the_limits_are_not_read(folder: Path) -> None:
    for name, size in (("config.json", MAX_BYTES + 1), ("modules.json", MAX_BYTES + 1), ("tokenizer.json", 10**9)):
        whole = (folder / name).read_bytes()
        os.truncate(folder / name, size)  # a hole: takes no room on the disk
        with pytest.raises(ModelError, match=rf"{name} has {size} bytes, and more than \d+ are not read"):
            Embedder.load(folder)
        (folder / name).write_bytes(whole)
    Embedder.load(folder)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ModelError, match=rf"{name} is missing"):
            Embedder.load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "1_Pooling/../..", "..\\elsewhere", "a\x00b", 3, None])
def test_a_module_cannot_lie_outside_of_the_models_folder(folder: Path, path: object) -> None:
    shutil.copytree(folder / "1_Pooling", folder.parent / "elsewhere")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"modules\.json: "):
        ModelPackage.read(folder)


def test_a_token_that_the_model_has_no_vector_for_is_refused(folder: Path) -> None:
    """Else the engine would read beyond its table."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    for change in ("vocabulary", "template"):
        tokenizer = json.loads(json.dumps(whole))
        if change == "vocabulary":
            tokenizer["model"]["vocab"]["zebra"] = 160
        else:
            tokenizer["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [2**32 - 1]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(ModelError, match=r"tokenizer\.json has a token of id \d+, and the model has vectors for"):
            Embedder.load(folder)


def test_a_panic_of_the_tokenizer_is_a_model_error(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    del tokenizer["post_processor"]["special_tokens"]["[CLS]"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Embedder.load(folder)


class Payload:
    """What a pickle does when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_opened(folder: Path) -> None:
    """Weights are read from safetensors and from nothing else, whatever a file's name is."""
    ran = folder / "ran"
    pickled = pickle.dumps(Payload(ran))
    for name in ("pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt", "training_args.bin"):
        (folder / name).write_bytes(pickled)
    Embedder.load(folder)
    (folder / "model.safetensors").write_bytes(pickled)
    with pytest.raises(ModelError, match="not a valid safetensors file"):
        Embedder.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        Embedder.load(folder)
    assert not ran.exists()
    pickle.loads(pickled)
    assert ran.exists()  # so it would have been noticed


def test_weights_of_another_type_say_what_to_do(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(ModelError, match="is of I32, and Fletcher reads F16, F32, F64"):
        Embedder.load(folder)

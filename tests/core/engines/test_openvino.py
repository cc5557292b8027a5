import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from safetensors.numpy import load_file, save_file

from fletcher_core import Embedder
from fletcher_core.engines import EngineSpec, signal_stack
from fletcher_core.engines.openvino import OpenVinoEngine, pad
from fletcher_core.engines.openvino_graph import encoder_graph
from fletcher_core.errors import ConfigError
from fletcher_core.models import ModelPackage, load_weights
from fletcher_core.tokens import TokenBatch, cumulative

CHECKPOINTS = ["bert_tiny", "bert_hd32", "nomic_tiny"]


def packed(expected: np.lib.npyio.NpzFile) -> TokenBatch:
    lengths = expected["lengths"].astype(np.int64)
    rows = zip(expected["input_ids"], lengths, strict=True)
    return TokenBatch(np.concatenate([ids[:length] for ids, length in rows]).astype(np.int32), cumulative(lengths))


def hidden_states(folder: Path, batch: TokenBatch) -> np.ndarray:
    package = ModelPackage.read(folder)
    weights = load_weights(folder, package.architecture)
    graph = encoder_graph(package.architecture, weights, None, False, package.architecture.hidden_size)
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled(list(pad(batch, 128)))[0])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_hidden_states_match_transformers(golden: Path, name: str) -> None:
    expected = np.load(golden / name / "expected.npz")
    hidden = hidden_states(golden / name, packed(expected))
    inside = np.arange(128) < expected["lengths"][:, None]
    assert np.abs(hidden - expected["last_hidden_state"])[inside].max() <= 2e-4


@pytest.mark.parametrize(("pooling", "key"), [("mean", "mean_pooled_normalized"), ("cls", "cls"), ("last", None)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pooling_matches_transformers(golden: Path, name: str, pooling: str, key: str | None) -> None:
    expected = np.load(golden / name / "expected.npz")
    package = ModelPackage.read(golden / name)
    package = ModelPackage(**{**vars(package), "pooling": pooling})
    normalize = pooling == "mean"
    engine = OpenVinoEngine(
        package,
        load_weights(golden / name, package.architecture),
        normalize=normalize,
        dimension=package.architecture.hidden_size,
        precision="fp32",
    )
    (vectors,) = engine.run([packed(expected)])
    wanted = expected["last_hidden_state"][np.arange(12), expected["lengths"] - 1] if key is None else expected[key]
    assert np.abs(vectors - wanted).max() <= 2e-4


def test_both_namings_of_nomic_give_the_same_vectors(golden: Path, tmp_path: Path) -> None:
    source = golden / "nomic_tiny"
    tensors = load_file(source / "model.safetensors")
    renamed = {
        "embeddings.word_embeddings.weight": tensors["embeddings.word_embeddings.weight"],
        "embeddings.token_type_embeddings.weight": tensors["embeddings.token_type_embeddings.weight"],
        "emb_ln.weight": tensors["embeddings.LayerNorm.weight"],
        "emb_ln.bias": tensors["embeddings.LayerNorm.bias"],
    }
    names = {
        "attn.out_proj.weight": "self_attn.o_proj.weight",
        "norm1.weight": "post_attention_layernorm.weight",
        "norm1.bias": "post_attention_layernorm.bias",
        "norm2.weight": "post_mlp_layernorm.weight",
        "norm2.bias": "post_mlp_layernorm.bias",
        "mlp.fc11.weight": "mlp.up_proj.weight",
        "mlp.fc12.weight": "mlp.gate_proj.weight",
        "mlp.fc2.weight": "mlp.down_proj.weight",
    }
    for n in range(3):
        for published, other in names.items():
            renamed[f"encoder.layers.{n}.{published}"] = tensors[f"layers.{n}.{other}"]
        parts = [tensors[f"layers.{n}.self_attn.{part}_proj.weight"] for part in "qkv"]
        renamed[f"encoder.layers.{n}.attn.Wqkv.weight"] = np.concatenate(parts)
    save_file(renamed, tmp_path / "model.safetensors")
    config = {
        "model_type": "nomic_bert",
        "vocab_size": 1000,
        "n_embd": 128,
        "n_head": 2,
        "n_inner": 256,
        "n_layer": 3,
        "n_positions": 512,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "activation_function": "swiglu",
        "layer_norm_epsilon": 1e-12,
        "type_vocab_size": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    batch = packed(np.load(source / "expected.npz"))
    assert np.array_equal(hidden_states(tmp_path, batch), hidden_states(source, batch))


def test_minilm_in_fp32_matches_sentence_transformers(golden: Path, golden_vectors: np.ndarray) -> None:
    reference = np.load(golden / "minilm_embeddings.npy")
    cosines = np.einsum("nd,nd->n", golden_vectors, reference)
    assert cosines.min() >= 0.99999


def test_minilm_in_bf16_matches_sentence_transformers(golden: Path, golden_texts: list[str]) -> None:
    # On a CPU without bfloat16 "auto" falls back to float32 and must pass all the more.
    reference = np.load(golden / "minilm_embeddings.npy")
    vectors = Embedder.load(precision="auto").embed(golden_texts)
    assert np.einsum("nd,nd->n", vectors, reference).min() >= 0.9999


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_texts_vector_does_not_depend_on_its_batch(golden_texts: list[str], precision: str) -> None:
    embedder = Embedder.load(precision=precision)  # type: ignore[arg-type]
    texts = golden_texts[:80]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts[:40]])
    assert np.array_equal(alone, together[:40])
    backwards = embedder.embed(texts[::-1] + golden_texts[80:90])[:80][::-1]
    assert np.array_equal(backwards, together)


def test_unknown_precision_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="auto, bf16, fp16, fp32"):
        Embedder.load(precision="int4")  # type: ignore[arg-type]


def test_engine_survives_a_consumer_that_stops_early(minilm: Embedder) -> None:
    """Peers' defect 1: after an abandoned or failed run the next request must succeed."""
    batches = [TokenBatch(np.full(20, 2023, np.int32), cumulative(np.array([10, 10])))] * 8
    run = minilm.engine.run(batches)
    next(run)
    run.close()  # type: ignore[attr-defined]

    def failing():  # type: ignore[no-untyped-def]
        yield batches[0]
        raise ValueError("tokenizer failed")

    with pytest.raises(ValueError, match="tokenizer failed"):
        list(minilm.engine.run(failing()))
    assert len(list(minilm.engine.run(batches))) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_loading_leaves_the_threads_signal_stack_as_it_was(golden: Path) -> None:
    """OpenVINO frees the one that it sets: the next Ctrl-C would be a segmentation fault."""
    libc, stacks = ctypes.CDLL(None), (signal_stack._Stack(), signal_stack._Stack())
    libc.sigaltstack(None, ctypes.byref(stacks[0]))
    EngineSpec(str(golden / "bert_tiny"), "bert_tiny", "openvino", "fp32", True, 128, threads=1).load()
    libc.sigaltstack(None, ctypes.byref(stacks[1]))
    assert [(stack.sp, stack.flags) for stack in stacks] == 2 * [(stacks[0].sp, stacks[0].flags)]

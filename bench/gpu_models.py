"""What the GPU benchmark runs and how it is timed: checkpoints with seeded random weights, texts with their tokens.

Speed depends on a model's shape and not on what it learned, and the shapes worth measuring are of several hundred MB.
Each folder is laid out so that Fletcher, transformers and sentence-transformers load it, and its weights are float32
numbers that bfloat16 holds exactly: a difference between vectors is then one of arithmetic, never of rounded weights.
"""

import gzip
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from fletcher_core.models.architecture import Architecture
from fletcher_core.tokens import TokenBatch, cumulative

VOCABULARY = 30522
SHORTEST_TEXT = 95  # characters; leaves texts of 76 tokens in the mean
FIXED_LENGTHS = (128, 256, 512)
TEXTS_FILE = "texts.json.gz"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
SENTENCE_TRANSFORMERS = {"__version__": {"sentence_transformers": "2.0.0"}}


@dataclass(frozen=True)
class Shape:
    """`max_length` cuts the texts; `share` of the texts that the command line asks for keeps rounds about as long."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    family: str = "bert"
    max_positions: int = 512
    max_length: int = 256
    share: float = 1.0


SHAPES = {
    "bert-tiny": Shape(128, 2, 2, 512, share=2),
    "minilm": Shape(384, 6, 12, 1536),
    "e5-small": Shape(384, 12, 12, 1536),
    "nomic": Shape(768, 12, 12, 3072, "nomic_bert", 2048, 512, share=0.25),
}


@dataclass
class Job:
    """One shape's part of a run, as both sides get it.

    The vectors of the first `kept` texts are saved; `fixed_counts` maps a length to a number of sequences; `scale`
    divides the batch sizes, for trials on a CPU; `engine` and `precision` are for Fletcher.
    """

    folder: Path
    texts: list[str]
    tokens: TokenBatch
    kept: int
    fixed_counts: dict[int, int]
    save: Callable[[str, np.ndarray], None]
    scale: int = 1
    engine: str = "mlx"
    precision: str = "bf16"

    @property
    def architecture(self) -> Architecture:
        return Architecture.read(self.folder)


def write_model(name: str, tokenizer: Path, folder: Path) -> Path:
    """The checkpoint of shape `name` below `folder`, written unless it is there; returns its own folder."""
    shape, target = SHAPES[name], folder / name
    if (target / "modules.json").is_file():
        return target
    (target / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        if (tokenizer / file).is_file():
            shutil.copyfile(tokenizer / file, target / file)
    save_file(_weights(shape), target / "model.safetensors", {"format": "pt"})
    pooling = {"word_embedding_dimension": shape.hidden, "pooling_mode_mean_tokens": True}
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(kinds.items())
    ]
    for path, value in {
        "config.json": _config(shape),
        "sentence_bert_config.json": {"max_seq_length": shape.max_length, "do_lower_case": False},
        "config_sentence_transformers.json": SENTENCE_TRANSFORMERS,
        "1_Pooling/config.json": pooling,
        "modules.json": modules,  # last: it says that the folder is complete
    }.items():
        (target / path).write_text(json.dumps(value, indent=1), encoding="utf-8")
    return target


def _config(shape: Shape) -> dict[str, object]:
    config: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.max_positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "model_type": shape.family,
    }
    if shape.family == "bert":
        return config | {"architectures": ["BertModel"], "hidden_act": "gelu", "position_embedding_type": "absolute"}
    return config | {
        "architectures": ["NomicBertModel"],
        "hidden_act": "silu",
        "head_dim": shape.hidden // shape.heads,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    }


def _weights(shape: Shape) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *size: int, scale: float = 0.02, center: float = 0.0) -> None:
        values = random.standard_normal(size, dtype=np.float32) * scale + center
        # The upper 16 bits of a float32 are a bfloat16: clearing the lower ones makes the number exact in both.
        tensors[name] = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    def linear(name: str, out: int, inner: int) -> None:
        add(f"{name}.weight", out, inner)
        if shape.family == "bert":
            add(f"{name}.bias", out)

    def norm(name: str) -> None:
        add(f"{name}.weight", shape.hidden, scale=0.1, center=1.0)
        add(f"{name}.bias", shape.hidden)

    h, i, bert = shape.hidden, shape.intermediate, shape.family == "bert"
    add("embeddings.word_embeddings.weight", VOCABULARY, h)
    add("embeddings.token_type_embeddings.weight", 2, h)
    if bert:
        add("embeddings.position_embeddings.weight", shape.max_positions, h)
        linear("pooler.dense", h, h)  # unused, but transformers draws a random one when it is missing
    norm("embeddings.LayerNorm")
    for n in range(shape.layers):
        p = f"encoder.layer.{n}." if bert else f"layers.{n}."
        names = ("query", "key", "value") if bert else ("q_proj", "k_proj", "v_proj")
        for name in names:
            linear(f"{p}attention.self.{name}" if bert else f"{p}self_attn.{name}", h, h)
        linear(f"{p}attention.output.dense" if bert else f"{p}self_attn.o_proj", h, h)
        norm(f"{p}attention.output.LayerNorm" if bert else f"{p}post_attention_layernorm")
        if not bert:
            linear(f"{p}mlp.gate_proj", i, h)
        linear(f"{p}intermediate.dense" if bert else f"{p}mlp.up_proj", i, h)
        linear(f"{p}output.dense" if bert else f"{p}mlp.down_proj", h, i)
        norm(f"{p}output.LayerNorm" if bert else f"{p}post_mlp_layernorm")
    return tensors


def real_texts(count: int, cache: Path) -> list[str]:
    """`count` texts of docstrings and code, read from `cache` where it has as many.

    The standard library takes most of a minute to read and is another in another Python: the cache travels.
    """
    if cache.is_file() and len(texts := json.loads(gzip.decompress(cache.read_bytes()))) >= count:
        return texts[:count]
    from texts import mixed_texts

    texts = [text for text in mixed_texts(2 * count) if len(text) >= SHORTEST_TEXT][:count]
    cache.write_bytes(gzip.compress(json.dumps(texts).encode()))
    return texts


def write_tokens(texts: list[str], tokenizer: Path, max_length: int, folder: Path) -> None:
    """Tokens of `texts` as Hugging Face `tokenizers` makes them, special tokens included, for `read_tokens`."""
    model = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    model.no_padding()
    model.enable_truncation(max_length)
    rows = [np.array(encoding.ids, dtype=np.int32) for encoding in model.encode_batch_fast(texts)]
    lengths = np.array([len(row) for row in rows])
    np.savez(folder / f"tokens-{max_length}.npz", ids=np.concatenate(rows), cu_seqlens=cumulative(lengths))


def read_tokens(folder: Path, max_length: int, count: int) -> TokenBatch:
    """The tokens of the first `count` texts."""
    with np.load(folder / f"tokens-{max_length}.npz") as file:
        cu_seqlens = file["cu_seqlens"][: count + 1]
        return TokenBatch(file["ids"][: cu_seqlens[-1]], cu_seqlens)


def fixed_tokens(count: int, length: int) -> TokenBatch:
    """`count` sequences of exactly `length` random ids."""
    ids = np.random.default_rng(length).integers(1000, VOCABULARY, count * length, dtype=np.int32)
    return TokenBatch(ids, np.arange(count + 1, dtype=np.int64) * length)


def flops(architecture: Architecture, lengths: np.ndarray) -> float:
    """Floating-point operations of all matrix products for sequences of `lengths`, those of attention included."""
    squares = float(np.square(lengths.astype(np.float64)).sum())
    attention = 4.0 * architecture.layers * architecture.hidden_size * squares
    return float(architecture.flops_per_token()) * float(lengths.sum()) + attention


def rounds(once: Callable[[], object], least: int = 3, seconds: float = 1.5, most: int = 12) -> dict[str, float]:
    """Best and median seconds of at least `least` rounds, and of more while `seconds` are not over."""
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < most):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return {"best_s": min(times), "median_s": float(np.median(times)), "rounds": len(times)}


def latency(
    embed: Callable[[str], object], texts: list[str], calls: int = 400, warmup: float = 1.5
) -> dict[str, float]:
    """Milliseconds of one text a call, over different texts, after `warmup` seconds of it: clocks rise slowly."""
    times: list[float] = []

    def once(text: str) -> None:
        start = time.perf_counter()
        embed(text)
        times.append(1000 * (time.perf_counter() - start))

    began = time.perf_counter()
    while time.perf_counter() - began < warmup:
        once(texts[-1 - len(times) % 100])
    times.clear()
    for text in texts[:calls]:
        once(text)
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95)}

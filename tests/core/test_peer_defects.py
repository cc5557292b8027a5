"""Defects seen in other embedding engines, of loading and tokenizing: each test names the peer and what it did.

Those of running, storing and sending are pinned where the parts are: `grep -rn "Peers' defect" tests`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from chaos.tiny_models import minilm as tiny_minilm
from fletcher_core import Embedder
from fletcher_core.cache import VectorCache
from fletcher_core.engines import EngineChoice
from fletcher_core.engines.native import engine as native
from fletcher_core.errors import EngineError, InputError
from fletcher_core.guard import sound_vectors
from fletcher_core.models import Architecture, ModelPackage
from fletcher_core.stop import Stop
from fletcher_core.tokenizers import TextEncoder, load_tokenizer
from fletcher_core.tokens import TokenBatch

CPU_ENGINES: tuple[EngineChoice, ...] = ("openvino", "native")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MiniLM cut down: 48 positions, at most 32 tokens of a text."""
    for name, data in tiny_minilm().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture(params=CPU_ENGINES)
def engine(request: pytest.FixtureRequest, folder: Path) -> EngineChoice:
    if request.param == "native" and not native.supported(Architecture.read(folder)):
        pytest.skip("the native engine does not run on this processor")
    return request.param


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_infinity_cut_vectors_after_normalizing_them(minilm: Embedder) -> None:
    """Peers' defect 2: the norm of a Matryoshka vector was below 1."""
    short = Embedder.load(precision="fp32", dimension=64)
    vectors = short.embed(["a text", "another"])
    assert vectors.shape == (2, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    full = minilm.embed(["a text", "another"])[:, :64]
    np.testing.assert_allclose(vectors, full / np.linalg.norm(full, axis=1, keepdims=True), atol=1e-5)


def test_text_embeddings_inference_spun_on_a_text_over_the_token_budget(
    folder: Path, engine: EngineChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers' defect 4: one text longer than `max_batch_tokens` was never scheduled, and the loop never slept."""
    embedder = Embedder.load(folder, engine=engine, threads=1)
    texts = ["a " * 30, "short", "the " * 20, ""]
    whole = embedder.embed(texts)
    lengths = embedder.encoder.encode(texts).sequences.lengths
    small = replace(embedder.engine.batching, token_budget=8)
    monkeypatch.setattr(type(embedder.engine), "batching", small)
    assert lengths.max() > 8
    assert sorted(np.concatenate(small.plan(lengths))) == list(range(len(lengths)))
    np.testing.assert_allclose(embedder.embed(texts, timeout=60.0), whole, atol=2e-2)


def test_text_embeddings_inference_sent_nan_for_a_vector_without_length(folder: Path, engine: EngineChoice) -> None:
    """Peers' defect 5: NaN went out as `null`. A text without words has a vector; one without length is an error."""
    texts = ["", " ", "\n\t", "\x00\x01\x02\x7f", "\u200b\u200d\ufeff", "\u0301", "\x01" * 1000]
    embedder = Embedder.load(folder, engine=engine, threads=1)
    vectors = embedder.embed(texts)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    with pytest.raises(InputError, match="text 1 holds a lone surrogate"):
        embedder.embed(["a", "\ud800"])
    _zero_the_last_layer(folder)
    for normalize in (True, False):
        silent = Embedder.load(folder, engine=engine, threads=1, normalize=normalize)
        with pytest.raises(EngineError, match="the vector of text 0 is not finite or has no length"):
            silent.embed(["a text"])
        ((_, flagged),) = silent.stream([(None, ["a text", ""])])
        assert not flagged.sound.any()


def _zero_the_last_layer(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name in ("weight", "bias"):
        tensors[f"encoder.layer.1.output.LayerNorm.{name}"][:] = 0.0
    save_file(tensors, folder / "model.safetensors")


def test_a_zero_norm_is_flagged_and_not_divided_by() -> None:
    """Peers' defect 5, at the guard."""
    vectors = np.array([[0.0, 0.0], [3.0, 4.0], [0.6, 0.8]], np.float32)
    assert sound_vectors(vectors, True).tolist() == [False, False, True]
    assert sound_vectors(vectors, False).tolist() == [False, True, True]
    assert sound_vectors(np.zeros((0, 4), np.float32), True).tolist() == []


def test_fastembed_took_the_maximum_length_of_another_field(folder: Path) -> None:
    """Peers' defect 7: of the tokenizer's file, where the model's own said less or the position table ended sooner."""
    assert ModelPackage.read(folder).max_length == 32
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    assert ModelPackage.read(folder).max_length == 32
    edit(folder / "sentence_bert_config.json", max_seq_length=512)
    assert ModelPackage.read(folder).max_length == 48
    edit(folder / "sentence_bert_config.json", max_seq_length=None)
    assert ModelPackage.read(folder).max_length == 48
    edit(folder / "tokenizer_config.json", model_max_length=40)
    assert ModelPackage.read(folder).max_length == 40
    (folder / "tokenizer_config.json").unlink()
    assert ModelPackage.read(folder).max_length == 48


def test_fastembed_kept_the_padding_and_truncation_saved_with_the_tokenizer(folder: Path) -> None:
    """Peers' defect 7: every text was computed at the fixed length of the file, and cut at the file's."""
    texts = ["a " * 20, "the", ""]
    edit(folder / "tokenizer.json", padding=None, truncation=None)
    plain = Embedder.load(folder, engine="openvino", threads=1)
    wanted = plain.encoder.encode(texts)
    padding = {"strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": 8}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    truncation = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    edit(folder / "tokenizer.json", padding=padding, truncation=truncation)
    saved = Embedder.load(folder, engine="openvino", threads=1)
    encoded = saved.encoder.encode(texts)
    assert encoded.token_counts.tolist() == wanted.token_counts.tolist() == [22, 3, 2]
    assert encoded.sequences.ids.tolist() == wanted.sequences.ids.tolist()
    assert not encoded.cut.any()
    assert np.array_equal(saved.embed(texts), plain.embed(texts))


def test_sentence_transformers_sorted_by_characters(minilm: Embedder) -> None:
    """Peers' defect 10: 60 characters of Chinese are 62 tokens, those of one known word a handful."""
    texts = ["北京大学" * 15 if row % 2 else ("information " * 5) for row in range(64)]
    assert {len(text) for text in texts} == {60}
    lengths = minilm.encoder.encode(texts).sequences.lengths
    assert (lengths.min(), lengths.max()) == (7, 62)
    planned = minilm.engine.batching.plan(lengths)
    in_order = np.concatenate([lengths[rows] for rows in planned])
    assert (np.diff(in_order) <= 0).all()
    ((_, result),) = minilm.stream([(None, texts)])
    least = 32 * 64 + 32 * 16  # rounded up to the engine's multiple of 16
    assert result.padded_tokens <= 1.1 * least  # in the order of their characters: 64 * 64


def test_llama_cpp_counted_512_tokens_and_ran_514(folder: Path, engine: EngineChoice) -> None:
    """Peers' defect 12: a limit without the special tokens. A text of exactly the limit passes whole, and runs."""
    encoder = TextEncoder(load_tokenizer(folder), 32, "truncate", 0)
    encoded = encoder.encode(["a " * 30, "a " * 31])
    assert encoded.token_counts.tolist() == [32, 33]
    assert encoded.sequences.lengths.tolist() == [32, 32]
    assert encoded.cut.tolist() == [False, True]
    to_the_last_position = Embedder.load(folder, engine=engine, threads=1, max_length=48)
    exact, longer = to_the_last_position.embed(["a " * 46, "a " * 47])
    assert np.isfinite(exact).all()
    assert np.array_equal(exact, longer)
    with pytest.raises(InputError, match="text 0 has 49 tokens and the limit is 48"):
        Embedder.load(folder, engine=engine, threads=1, max_length=48, long_text="error").embed(["a " * 47])


def test_infinity_joined_key_parts_without_a_separator() -> None:
    """Peers' defect 3: two pairs of a setting and a text whose letters meet in one string shared a cache entry."""
    cache = VectorCache(10_000)
    pairs = [(b"ab", "c"), (b"a", "bc"), (b"", "abc"), (b"abc", "")]
    keys = [cache.text_keys(space).key(text) for space, text in pairs]
    assert len(set(keys)) == len(pairs)


def test_daft_lost_the_batch_size_on_the_way(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers' defect 9: the engine re-batched at its own 32. Here a batch holds as many texts as its tokens allow."""
    sizes: list[int] = []
    run = minilm.engine.run

    def counted(batches: Iterable[TokenBatch], stop: Stop) -> Iterator[np.ndarray]:
        def seen() -> Iterator[TokenBatch]:
            for batch in batches:
                sizes.append(len(batch))
                yield batch

        return run(seen(), stop)

    monkeypatch.setattr(minilm.engine, "run", counted)
    table = pa.table({"text": [f"text {n}" for n in range(300)]})
    (batch,) = minilm.embed_batches(table, "text")
    assert batch.num_rows == 300
    # Texts as short as these are padded to 16 tokens.
    assert set(sizes[:-1]) == {minilm.engine.batching.token_budget // 16}

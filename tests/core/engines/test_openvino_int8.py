"""int8: close to float32, the same bits in any batch, and never mistaken for the floats."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fletcher_core import Embedder
from fletcher_core.cache import VectorCache
from fletcher_core.engines import load_engine
from fletcher_core.engines.openvino import OpenVinoEngine
from fletcher_core.engines.openvino_int8 import group_size
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.models import ModelPackage, load_weights
from fletcher_core.tokens import TokenBatch, cumulative


@pytest.fixture(scope="module")
def int8() -> Embedder:
    return Embedder.load(precision="int8")


def test_int8_is_close_to_float32(int8: Embedder, golden_vectors: np.ndarray, golden_texts: list[str]) -> None:
    """30 of these texts are adversarial: other scripts, noise, a single letter repeated."""
    cosines = np.einsum("nd,nd->n", int8.embed(golden_texts), golden_vectors)
    assert cosines.mean() >= 0.995
    assert cosines.min() >= 0.98


@pytest.mark.parametrize("name", ["bert_tiny", "nomic_tiny"])
def test_every_family_runs_in_int8(golden: Path, name: str) -> None:
    expected = np.load(golden / name / "expected.npz")
    ids, lengths = expected["input_ids"], expected["lengths"]
    batch = TokenBatch(ids[np.arange(ids.shape[1]) < lengths[:, None]].astype(np.int32), cumulative(lengths))
    package = ModelPackage.read(golden / name)
    weights = load_weights(golden / name, package.architecture)
    exact, rounded = (
        next(
            OpenVinoEngine(
                package, weights, normalize=True, dimension=package.architecture.hidden_size, precision=precision
            ).run([batch])
        )
        for precision in ("fp32", "int8")
    )
    assert np.einsum("nd,nd->n", exact, rounded).min() >= 0.98
    assert not np.array_equal(exact, rounded)


def test_a_texts_vector_does_not_depend_on_its_batch(int8: Embedder, golden_texts: list[str]) -> None:
    """Scales belong to tokens: random batches, of random sizes and lengths, give the bits of each text alone."""
    sequences = int8.encoder.encode(golden_texts[::3]).sequences  # ten of the adversarial ones are among them
    engine = int8.engine
    alone = np.concatenate(list(engine.run(sequences.take(np.array([row])) for row in range(len(sequences)))))
    random = np.random.default_rng(5)
    batches = [random.choice(len(sequences), random.integers(1, 24), replace=False) for _ in range(20)]
    for rows, vectors in zip(batches, engine.run(sequences.take(rows) for rows in batches), strict=True):
        assert np.array_equal(vectors, alone[rows])


def test_int8_is_deterministic(int8: Embedder, golden_texts: list[str]) -> None:
    texts = golden_texts[:60]
    vectors = int8.embed(texts)
    assert np.array_equal(int8.embed(texts), vectors)
    assert np.array_equal(Embedder.load(precision="int8", threads=1).embed(texts), vectors)


def test_only_openvino_has_int8(monkeypatch: pytest.MonkeyPatch, int8: Embedder) -> None:
    assert (int8.engine.name, int8.engine.precision) == ("openvino", "int8")
    monkeypatch.setattr("fletcher_core.engines.choose.has_gpu", lambda: True)
    assert Embedder.load(precision="int8").engine.name == "openvino"
    for engine in ("mlx", "native"):
        with pytest.raises(ConfigError, match=f"precision is 'int8' and engine is '{engine}'.*use engine='openvino'"):
            Embedder.load(engine=engine, precision="int8")  # type: ignore[arg-type]


def test_int8_vectors_are_those_of_another_model(int8: Embedder, minilm: Embedder) -> None:
    """Otherwise a store would mix them with those of the floats, and its search would compare them."""
    assert int8.card.fingerprint != minilm.card.fingerprint
    assert Embedder.load(engine="openvino", precision="int8").card == int8.card
    assert Embedder.load(precision="auto").card == minilm.card


def test_a_shared_cache_keeps_int8_apart(int8: Embedder, minilm: Embedder) -> None:
    cache = VectorCache(1 << 20)
    rounded, exact = (
        Embedder(e.package, e.engine, e.encoder, e.query_encoder, e.card, e.normalize, cache).embed(["a text"])
        for e in (int8, minilm)
    )
    assert not np.array_equal(rounded, exact)


def test_weights_of_zeros_run_and_damaged_ones_are_refused(golden: Path) -> None:
    """The plugin makes finite numbers of activations that are not, so the guard would not see the damage."""
    package = ModelPackage.read(golden / "bert_tiny")
    weights = load_weights(golden / "bert_tiny", package.architecture)
    batch = TokenBatch(np.array([7, 3, 4, 5], np.int32), cumulative(np.array([2, 2])))

    def vectors(up: np.ndarray) -> np.ndarray:
        layers = (replace(weights.layers[0], up=up), *weights.layers[1:])
        engine = load_engine(
            "openvino", package, replace(weights, layers=layers), normalize=True, dimension=128, precision="int8"
        )
        return next(iter(engine.run([batch])))

    up = weights.layers[0].up
    zeros, damaged = up.copy(), up.copy()
    zeros[3] = 0
    assert np.isfinite(vectors(zeros)).all()
    for value in (np.nan, np.inf):
        damaged[3, 5] = value
        with pytest.raises(EngineError, match="a weight is not finite"):
            vectors(damaged)


def test_damaged_embeddings_give_unsound_vectors_not_wrong_ones(golden: Path) -> None:
    package = ModelPackage.read(golden / "bert_tiny")
    weights = load_weights(golden / "bert_tiny", package.architecture)
    words = weights.words.copy()
    words[7] = np.nan
    engine = OpenVinoEngine(package, replace(weights, words=words), normalize=True, dimension=128, precision="int8")
    (vectors,) = engine.run([TokenBatch(np.array([7, 3, 4, 5], np.int32), cumulative(np.array([2, 2])))])
    assert not np.isfinite(vectors[0]).any()
    assert np.isfinite(vectors[1]).all()


@pytest.mark.parametrize(
    ("hidden", "intermediate", "group"), [(384, 1536, 384), (768, 3072, 384), (1024, 4096, 512), (128, 256, 128)]
)
def test_a_group_divides_both_widths(golden: Path, hidden: int, intermediate: int, group: int) -> None:
    architecture = ModelPackage.read(golden / "bert_tiny").architecture
    assert group_size(replace(architecture, hidden_size=hidden, intermediate_size=intermediate)) == group

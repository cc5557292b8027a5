"""The GPU engine's numbers, on MLX's CPU backend: plain operations in place of the kernels, so right but slow."""

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fletcher_core import Embedder
from fletcher_core.engines import load_engine
from fletcher_core.engines.choose import has_gpu
from fletcher_core.engines.mlx import engine as mlx_engine
from fletcher_core.engines.mlx.batch import FilledBatch
from fletcher_core.engines.mlx.engine import MlxEngine
from fletcher_core.engines.mlx.transfer import Transfer
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.models import ModelPackage, Weights, load_weights
from fletcher_core.token_budget import TokenBudget
from fletcher_core.tokens import TokenBatch, cumulative

CHECKPOINTS = ["bert_tiny", "bert_hd32", "nomic_tiny"]
HALVES = ["fp16", "bf16"]
FEW = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(folder: Path, precision: str = "fp32", change: Callable[[Weights], Weights] | None = None, **kw: Any) -> Any:
    """An engine on the CPU that loads fast: its trial texts are short."""
    package = ModelPackage.read(folder)
    package = replace(package, pooling=kw.pop("pooling", package.pooling), max_length=32)
    weights = load_weights(folder, package.architecture)
    kw = {"normalize": True, "dimension": package.architecture.hidden_size, **kw}
    return MlxEngine(package, change(weights) if change else weights, precision=precision, on_cpu=True, **kw)


@pytest.fixture(scope="module")
def tiny(golden: Path) -> MlxEngine:
    engine: MlxEngine = make(golden / "bert_tiny", "fp16")
    engine.buckets = (64, 128, 256)  # what the warm-up chooses depends on the machine
    engine.flights.budget = TokenBudget(engine.buckets, start_tokens=256)
    return engine


def packed(expected: np.lib.npyio.NpzFile) -> TokenBatch:
    lengths = expected["lengths"].astype(np.int64)
    rows = zip(expected["input_ids"], lengths, strict=True)
    return TokenBatch(np.concatenate([ids[:length] for ids, length in rows]).astype(np.int32), cumulative(lengths))


def texts_of(lengths: list[int], seed: int = 0) -> TokenBatch:
    ids = np.random.default_rng(seed).integers(0, 1000, sum(lengths)).astype(np.int32)
    return TokenBatch(ids, cumulative(np.array(lengths)))


TEXTS = texts_of([3, 31, 100, 17, 2, 1, 64, 5, 12, 9, 30, 16])
COMPOSITIONS = st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=10)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("nd,nd->n", a.astype(np.float64), b.astype(np.float64)) / norms


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-5), ("fp16", 2e-3), ("bf16", 1.5e-2)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_hidden_states_match_transformers(golden: Path, name: str, precision: str, allowed: float) -> None:
    expected = np.load(golden / name / "expected.npz")
    batch = packed(expected)
    engine = make(golden / name, precision)
    inside = np.arange(128) < expected["lengths"][:, None]
    wanted = expected["last_hidden_state"][inside]
    assert np.abs(engine.hidden_states(batch) - wanted).max() <= allowed * np.abs(wanted).max()
    (vectors,) = engine.run([batch])
    assert cosines(vectors, expected["mean_pooled_normalized"]).min() >= 0.9999


@pytest.mark.parametrize(("pooling", "key"), [("mean", "mean_pooled_normalized"), ("cls", "cls"), ("last", None)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pooling_matches_transformers(golden: Path, name: str, pooling: str, key: str | None) -> None:
    expected = np.load(golden / name / "expected.npz")
    engine = make(golden / name, pooling=pooling, normalize=pooling == "mean")
    batch = packed(expected)
    shortest = np.argsort(batch.lengths)[:6]
    (vectors,) = engine.run([batch.take(shortest)])
    wanted = expected["last_hidden_state"][np.arange(12), expected["lengths"] - 1] if key is None else expected[key]
    assert vectors.dtype == np.float32
    assert np.abs(vectors - wanted[shortest]).max() <= 2e-4


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_matryoshka_vectors_are_cut_before_they_are_normalized(golden: Path, name: str) -> None:
    batch = texts_of([5, 12, 9])
    (full,) = make(golden / name).run([batch])
    (short,) = make(golden / name, dimension=32).run([batch])
    assert short.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1.0, atol=1e-6)
    assert cosines(short, full[:, :32]).min() >= 0.99999


def alone(engine: MlxEngine) -> np.ndarray:
    """The vector of each of `TEXTS` in a batch of its own."""
    return np.concatenate(list(engine.run(TEXTS.take(np.array([n])) for n in range(len(TEXTS)))))


@pytest.fixture(scope="module")
def tiny_alone(tiny: MlxEngine) -> np.ndarray:
    return alone(tiny)


@pytest.fixture(scope="module", params=["fp16", "fp32"])
def invariant(golden: Path, request: pytest.FixtureRequest) -> tuple[MlxEngine, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlx_engine, "INVARIANT_TOKENS", 256)
        engine = make(golden / "bert_tiny", request.param, batch_invariant=True)
    assert engine.buckets == (256,)
    return engine, alone(engine)


@FEW
@given(rows=COMPOSITIONS)
def test_a_texts_vector_hardly_depends_on_its_batch(tiny: MlxEngine, tiny_alone: np.ndarray, rows: list[int]) -> None:
    (vectors,) = tiny.run([TEXTS.take(np.array(rows))])
    assert cosines(vectors, tiny_alone[rows]).min() >= 0.99999


@FEW
@given(rows=COMPOSITIONS)
def test_a_texts_vector_is_the_same_to_the_last_bit_in_any_batch_if_asked_for(
    invariant: tuple[MlxEngine, np.ndarray], rows: list[int]
) -> None:
    engine, expected = invariant
    vectors = np.concatenate(list(engine.run(_within(rows, 256))))
    assert np.array_equal(vectors, expected[rows])


def _within(rows: list[int], tokens: int) -> Iterator[TokenBatch]:
    """`TEXTS` of these rows in their order, in batches of at most so many tokens."""
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or TEXTS.lengths[rows[start : stop + 1]].sum() > tokens:
            yield TEXTS.take(np.array(rows[start:stop]))
            start = stop


def test_minilm_agrees_with_the_cpu_engine(minilm: Embedder, golden_texts: list[str]) -> None:
    package = replace(minilm.package, max_length=16)
    weights = load_weights(package.folder, package.architecture)
    engine = MlxEngine(package, weights, normalize=True, dimension=384, on_cpu=True)
    assert engine.precision == "fp16"
    gpu = Embedder(package, engine, minilm.encoder, minilm.encoder, minilm.card, normalize=True)
    texts = sorted(golden_texts, key=len)[10:60:5]
    assert cosines(gpu.embed(texts), minilm.embed(texts)).min() >= 0.9999
    assert cosines(gpu.embed_query(texts[0])[None], minilm.embed(texts[:1])).min() >= 0.9999


def test_a_text_longer_than_the_largest_bucket_runs(golden: Path) -> None:
    """Peers' defect 4: an input over the batch budget must not wait for ever."""
    engine = make(golden / "bert_tiny")
    engine.buckets = (64,)
    engine.flights.budget = TokenBudget(engine.buckets)
    lengths = np.array([3, 130, 5])
    batch = texts_of(lengths.tolist())
    plan = engine.batching.plan(lengths)
    assert [rows.tolist() for rows in plan] == [[1], [2, 0]]
    assert engine.batching.computed_tokens(lengths[plan[0]]) == 160
    long, short = engine.run(batch.take(rows) for rows in plan)
    (together,) = engine.run([batch])
    np.testing.assert_allclose(np.concatenate([long, short]), together[[1, 2, 0]], atol=1e-5)


def test_a_stream_of_any_lengths_sends_only_the_shapes_that_were_warmed_up(
    tiny: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def submit(transfer: Transfer, batch: FilledBatch, _: Any) -> mx.array:
        assert len(batch.source.ids) <= batch.tokens
        sent.append(batch.tokens)
        return transfer.deliver(mx.zeros((len(batch.source), tiny.dimension)))

    monkeypatch.setattr(tiny.flights, "submit", submit)
    random = np.random.default_rng(0)
    total = 0
    for window in range(20):
        lengths = np.minimum(random.geometric(random.uniform(0.01, 0.3), random.integers(1, 500)), 256)
        batch = texts_of(lengths.tolist(), window)
        plan = tiny.batching.plan(lengths)
        returned = list(tiny.run(batch.take(rows) for rows in plan))
        assert [len(vectors) for vectors in returned] == [len(rows) for rows in plan]
        assert [tiny.batching.computed_tokens(lengths[rows]) for rows in plan] == sent[-len(plan) :]
        total += len(lengths)
    assert total > 3000
    assert set(sent) <= set(tiny.buckets)


def test_memory_is_back_where_it_was_once_a_run_is_over(tiny: MlxEngine) -> None:
    batches = [texts_of([5, 30, 9], seed) for seed in range(40)]
    list(tiny.run(batches[:3]))
    gc.collect()
    before = mx.get_active_memory()
    for _ in tiny.run(batches):
        pass
    gc.collect()
    assert mx.get_active_memory() <= before + 4096


def _overflowing(weights: Weights) -> Weights:
    return replace(weights, layers=[replace(weights.layers[0], down=weights.layers[0].down * 3e5), *weights.layers[1:]])


def test_a_checkpoint_that_overflows_in_float16_runs_in_bfloat16(golden: Path) -> None:
    folder = golden / "bert_tiny"
    assert make(folder, "auto").precision == "fp16"
    engine = make(folder, "auto", _overflowing)
    assert engine.precision == "bf16"
    (vectors,) = engine.run([texts_of([7, 9])])
    assert np.isfinite(vectors).all()
    with pytest.raises(EngineError, match=r"'bert_tiny' gives no finite vectors in fp16: try 'fp32'"):
        make(folder, "fp16", _overflowing)


def test_a_gpu_is_taken_where_there_is_one(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModelPackage.read(golden / "bert_tiny")
    arguments = (package, load_weights(package.folder, package.architecture))
    monkeypatch.setattr(mlx_engine, "MlxEngine", partial(MlxEngine, on_cpu=True))
    for found, name in ((True, "mlx"), (False, "openvino")):
        monkeypatch.setattr("fletcher_core.engines.choose.has_gpu", lambda found=found: found)
        engine = load_engine("auto", *arguments, normalize=True, dimension=128, precision="fp32")
        assert (engine.name, engine.precision) == (name, "fp32")
        assert engine.device


def test_an_engine_that_cannot_be_had_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletcher_core.engines.choose.has_gpu", lambda: False)
    with pytest.raises(
        ConfigError, match=r"'mlx' and MLX finds no GPU here: on NVIDIA install Fletcher's extra `cuda`"
    ):
        Embedder.load(engine="mlx")
    with pytest.raises(ConfigError, match="engine is 'cuda'; choose one of auto, mlx, cpu, native, openvino"):
        Embedder.load(engine="cuda")  # type: ignore[arg-type]


def test_unknown_precision_names_the_choices(golden: Path) -> None:
    with pytest.raises(ConfigError, match="precision is 'int4'; choose one of auto, bf16, fp16, fp32"):
        make(golden / "bert_tiny", "int4")


def test_an_mlx_that_cannot_be_loaded_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux `pip install mlx` alone has no library of a device."""
    monkeypatch.setitem(sys.modules, "fletcher_core.engines.mlx.device", None)
    assert not has_gpu()

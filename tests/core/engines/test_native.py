"""The CPU engine in our own code, against transformers, float64 and itself."""

import math
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fletcher_kernels.gemm_act import GELU_LOGIT
from hypothesis import given, settings
from hypothesis import strategies as st

from fletcher_core import Embedder
from fletcher_core.engines import load_engine
from fletcher_core.engines.native import engine as native
from fletcher_core.engines.native.engine import NativeEngine
from fletcher_core.errors import ConfigError, EngineError, RunCancelled
from fletcher_core.models import Architecture, LayerWeights, ModelPackage, Weights, load_weights
from fletcher_core.stop import Stop
from fletcher_core.tokens import TokenBatch, cumulative

BERT = Architecture("bert", 200, 96, 2, 3, 160, "gelu", 300, 2, 1e-12)
NOMIC = Architecture("nomic_bert", 200, 128, 2, 2, 96, "silu", 300, 2, 1e-12, 1000.0)

pytestmark = pytest.mark.skipif(not native.supported(BERT), reason="no bfloat16 products of AVX-512 here")


def random_weights(a: Architecture, seed: int = 0) -> Weights:
    random = np.random.default_rng(seed)
    h, i = a.hidden_size, a.intermediate_size

    def draw(*shape: int, scale: float = 0.08) -> np.ndarray:
        return (random.normal(size=shape) * scale).astype(np.float32)

    def bias(size: int) -> np.ndarray | None:
        return None if a.gated else draw(size)

    def layer() -> LayerWeights:
        gate = draw(i, h) if a.gated else None
        attention = draw(3 * h, h), bias(3 * h), draw(h, h), bias(h), 1 + draw(h), draw(h)
        return LayerWeights(*attention, gate, draw(i, h), bias(i), draw(h, i), bias(h), 1 + draw(h), draw(h))

    positions = None if a.gated else draw(a.max_positions, h, scale=0.5)
    words = draw(a.vocab_size, h, scale=1.0)
    return Weights(words, positions, draw(h), 1 + draw(h), draw(h), tuple(layer() for _ in range(a.layers)))


def make(a: Architecture, weights: Weights, pooling: str = "mean", normalize: bool = True, **settings: Any) -> Any:
    package = ModelPackage(Path(), "random", a, pooling, normalize, max_length=a.max_positions)  # type: ignore[arg-type]
    return NativeEngine(package, weights, normalize=normalize, **({"dimension": a.hidden_size} | settings))


def texts_of(lengths: list[int], seed: int = 0) -> TokenBatch:
    ids = np.random.default_rng(seed).integers(0, 200, sum(lengths)).astype(np.int32)
    return TokenBatch(ids, cumulative(np.array(lengths)))


def reference(a: Architecture, w: Weights, ids: np.ndarray) -> np.ndarray:
    """The last block's output for one text, float64 [length, h]."""

    def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + a.norm_epsilon) * weight + bias

    def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return x @ weight.astype(np.float64).T + (0.0 if bias is None else bias)

    acts = {
        "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x / (1 + np.exp(-x)),
    }
    n, d = len(ids), a.head_dim
    x = w.words[ids].astype(np.float64) + w.token_type + (0.0 if w.positions is None else w.positions[:n])
    x = norm(x, w.norm, w.norm_bias)
    angles = a.rotary_angles()
    for layer in w.layers:
        q, k, v = (
            part.reshape(n, a.heads, d).transpose(1, 0, 2)
            for part in np.split(linear(x, layer.qkv, layer.qkv_bias), 3, axis=-1)
        )
        if angles is not None:
            cosine, sine = np.cos(angles[:n]), np.sin(angles[:n])
            q, k = (
                np.concatenate(
                    [
                        y[..., : d // 2] * cosine - y[..., d // 2 :] * sine,
                        y[..., d // 2 :] * cosine + y[..., : d // 2] * sine,
                    ],
                    -1,
                )
                for y in (q, k)
            )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(d)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, -1)
        x = norm(
            x + linear(mixed, layer.attention_out, layer.attention_out_bias),
            layer.attention_norm,
            layer.attention_norm_bias,
        )
        inner = linear(x, layer.up, layer.up_bias)
        act = acts[a.activation]
        inner = act(inner) if layer.gate is None else act(linear(x, layer.gate, None)) * inner
        x = norm(x + linear(inner, layer.down, layer.down_bias), layer.output_norm, layer.output_norm_bias)
    return x


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.mark.parametrize("name", ["bert_tiny", "bert_hd32", "nomic_tiny"])
@pytest.mark.parametrize(("pooling", "key"), [("mean", "mean_pooled_normalized"), ("cls", "cls"), ("last", None)])
def test_vectors_match_transformers(golden: Path, name: str, pooling: str, key: str | None) -> None:
    expected = np.load(golden / name / "expected.npz")
    package = replace(ModelPackage.read(golden / name), pooling=pooling)  # type: ignore[arg-type]
    weights = load_weights(golden / name, package.architecture)
    engine = NativeEngine(package, weights, normalize=key != "cls", dimension=package.architecture.hidden_size)
    lengths = expected["lengths"].astype(np.int64)
    rows = [ids[:length] for ids, length in zip(expected["input_ids"], lengths, strict=True)]
    (vectors,) = engine.run([TokenBatch(np.concatenate(rows).astype(np.int32), cumulative(lengths))])
    wanted = expected["last_hidden_state"][np.arange(12), lengths - 1] if key is None else expected[key]
    assert cosines(vectors, wanted).min() >= 0.9999
    if key != "cls":
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_minilm_matches_sentence_transformers(golden: Path, golden_texts: list[str]) -> None:
    wanted = np.load(golden / "minilm_embeddings.npy")
    assert np.einsum("nd,nd->n", Embedder.load(engine="native").embed(golden_texts), wanted).min() >= 0.9999


SHAPES = [
    *(replace(BERT, activation=kind) for kind in ("gelu", "gelu_tanh", "relu", "silu")),
    NOMIC,
    replace(NOMIC, hidden_size=64, heads=4, intermediate_size=80),  # heads of 16
    replace(BERT, hidden_size=384, heads=3, intermediate_size=176),  # heads of 128: two panels
    replace(BERT, hidden_size=144, heads=3),  # heads of 48: a narrow panel, and half a block of keys
]


@pytest.mark.parametrize("a", SHAPES, ids=lambda a: f"{a.family}-{a.hidden_size}/{a.heads}-{a.activation}")
def test_every_length_and_shape_is_near_to_float64(a: Architecture) -> None:
    weights, engine = random_weights(a), make(a, random_weights(a), normalize=False)
    lengths = [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 63, 64, 65, 97, 130]
    batch = texts_of(lengths)
    (vectors,) = engine.run([batch])
    for row, vector in enumerate(vectors):
        ids = batch.ids[batch.cu_seqlens[row] : batch.cu_seqlens[row + 1]]
        wanted = reference(a, weights, ids).mean(axis=0)
        assert np.abs(vector - wanted).max() <= 0.02 * np.abs(wanted).max(), lengths[row]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_texts_vector_is_the_same_to_the_last_bit_in_any_batch(lengths: list[int], seed: int, random: Any) -> None:
    a = NOMIC if seed % 2 else BERT
    engine = make(a, random_weights(a))
    batch = texts_of(lengths, seed)
    (together,) = engine.run([batch])
    order = list(range(len(lengths)))
    random.shuffle(order)
    cut = random.randint(0, len(order))
    parts = [batch.take(np.array(rows)) for rows in (order[:cut], order[cut:]) if rows]
    assert np.array_equal(np.concatenate(list(engine.run(parts))), together[order])


def test_many_batches_at_once_come_back_in_order() -> None:
    weights = random_weights(BERT)
    engine = make(BERT, weights)
    batches = [texts_of([1 + n % 60, 3], n) for n in range(200)]
    wanted = [next(iter(engine.run([batch]))) for batch in batches]
    for got, want in zip(engine.run(iter(batches)), wanted, strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("a", SHAPES, ids=lambda a: f"{a.family}-{a.hidden_size}/{a.heads}-{a.activation}")
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_a_vector_is_the_same_to_the_last_bit_on_any_number_of_threads(a: Architecture, threads: int) -> None:
    weights = random_weights(a)
    alone, together = make(a, weights, threads=1), make(a, weights, threads=threads)
    for number, lengths in enumerate([[1], [5], [16], [130], [3, 40, 1], [9] * 30] * 5):
        batch = texts_of(lengths, number)
        assert np.array_equal(next(iter(together.run([batch]))), next(iter(alone.run([batch]))))


def test_many_threads_may_call_at_once() -> None:
    engine = make(BERT, random_weights(BERT), threads=3)
    batches = [texts_of([1 + number], number) for number in range(24)]
    wanted = list(engine.run(batches))

    def call(caller: int) -> bool:
        mine = [(caller * 5 + turn) % len(batches) for turn in range(100)]
        return all(np.array_equal(next(iter(engine.run([batches[at]]))), wanted[at]) for at in mine)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    engine = make(BERT, random_weights(BERT), threads=2)
    batches = [texts_of([7]), texts_of([30, 2]), texts_of([16])]
    wanted = list(engine.run(batches))
    over = threading.Event()

    def keep_running() -> None:
        while not over.is_set():
            list(engine.run(batches[:1]))

    def in_child() -> bool:
        several = list(engine.run(batches))
        single = [next(iter(engine.run([batch]))) for batch in batches]
        # Of its pool's two threads the second is begun only if the first is still busy then.
        expected = 1 + len(engine._pool._threads) + 1
        helped = not Path("/proc/self/task").exists() or len(os.listdir("/proc/self/task")) == expected
        return helped and all(map(np.array_equal, [*several, *single], wanted * 2))

    other = threading.Thread(target=keep_running)
    other.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                os._exit(0 if in_child() else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        over.set()
        other.join()


def processor_time_asleep() -> float:
    """Seconds that this process's threads compute while this one sleeps for half a second."""
    before = time.process_time()
    time.sleep(0.5)
    return time.process_time() - before


def threads_of_an_engine() -> tuple[list[int], bool]:
    """How many threads this process has more than without an engine: with one, after a batch, without it; and whether
    the idle engine leaves the processor alone."""

    def threads() -> int:
        return len(os.listdir("/proc/self/task")) - before

    before = 0
    before = threads()
    a = replace(BERT, hidden_size=384)
    engine = make(a, random_weights(a), threads=4)
    counts = [threads()]
    list(engine.run([texts_of([9])]))
    counts.append(threads())
    # The first half second may hold the end of a batch; a thread that spins makes none of them so quiet.
    sleeps = any(processor_time_asleep() < 0.02 for _ in range(10))
    list(engine.run([texts_of([9])]))
    del engine
    end = time.monotonic() + 10
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    return [*counts, threads()], sleeps


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_threads_sleep_between_batches_and_end_with_the_engine() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        counts, sleeps = pool.submit(threads_of_an_engine).result()
    assert counts == [4, 7, 0]  # a batch a core; and beside the caller, three for one batch over all cores
    assert sleeps


def test_it_stops_and_goes_on() -> None:
    engine, cancelled = make(BERT, random_weights(BERT)), threading.Event()

    def batches() -> Any:
        for number in range(1000):
            if number == 5:
                cancelled.set()
            yield texts_of([40])

    with pytest.raises(RunCancelled):
        list(engine.run(batches(), Stop(cancelled)))
    run = engine.run([texts_of([9])] * 9)
    next(run)
    run.close()
    assert len(next(iter(engine.run([texts_of([4, 5])])))) == 2


def test_a_prefix_of_the_vector_is_cut_before_it_is_normalized() -> None:
    weights = random_weights(BERT)
    batch = texts_of([7, 50])
    (whole,) = make(BERT, weights).run([batch])
    (part,) = make(BERT, weights, dimension=40).run([batch])
    prefix = whole[:, :40] / np.linalg.norm(whole[:, :40], axis=1, keepdims=True)
    np.testing.assert_allclose(part, prefix, atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "starts", "message"),
    [
        ([1, 2, 999], [0, 3], "not in the model's vocabulary"),
        ([-1], [0, 1], "not in the model's vocabulary"),
        ([1, 2], [0, 2, 2], "empty or longer"),
        ([1] * 301, [0, 301], "empty or longer"),
        ([1, 2], [0, 1], "do not fit"),
    ],
)
def test_what_would_read_elsewhere_is_refused(ids: list[int], starts: list[int], message: str) -> None:
    engine = make(BERT, random_weights(BERT))
    batch = TokenBatch(np.array(ids, np.int32), np.array(starts, np.int32))
    with pytest.raises(EngineError, match=message):
        list(engine.run([batch]))


def test_unsound_weights_give_unsound_vectors_not_wrong_ones() -> None:
    weights = random_weights(BERT)
    words = weights.words.copy()
    words[7] = np.nan
    engine = make(BERT, replace(weights, words=words))
    batch = TokenBatch(np.array([7, 3, 4, 5], np.int32), cumulative(np.array([2, 2])))
    (vectors,) = engine.run([batch])
    assert np.isnan(vectors[0]).any()
    assert np.isfinite(vectors[1]).all()


def test_the_choice_of_engine(monkeypatch: pytest.MonkeyPatch, golden: Path) -> None:
    package = ModelPackage.read(golden / "bert_tiny")
    weights = load_weights(package.folder, package.architecture)
    monkeypatch.setattr("fletcher_core.engines.choose.has_gpu", lambda: False)

    def chosen(choice: Any, **settings: Any) -> str:
        return load_engine(choice, package, weights, normalize=True, dimension=128, **settings).name

    monkeypatch.setattr(native, "has_matrix_unit", lambda: False)
    assert [chosen("auto"), chosen("auto", precision="bf16"), chosen("auto", precision="fp32")] == [
        "native",
        "native",
        "openvino",
    ]
    monkeypatch.setattr(native, "has_matrix_unit", lambda: True)
    assert [chosen("auto"), chosen("native")] == ["openvino", "native"]
    monkeypatch.setattr(native, "supported", lambda architecture: False)
    monkeypatch.setattr(native, "has_matrix_unit", lambda: False)
    assert chosen("auto") == "openvino"
    with pytest.raises(EngineError, match="take engine='openvino'"):
        chosen("native")
    with pytest.raises(ConfigError, match="computes in bf16"):
        chosen("native", precision="fp32")


def test_gelu_s_digits_are_those_of_the_gpu_s() -> None:
    source = Path(__file__).parents[3] / "kernels" / "simd" / "encoder" / "avx512_bf16.cpp"
    fit = source.read_text("utf-8").split("Activation::gelu)")[1].split("Activation::gelu_tanh")[0]
    digits = re.findall(r"-log2e \* ([-\d.e]+)f", fit)
    assert [float(number) for number in reversed(digits)] == list(GELU_LOGIT)


@pytest.mark.parametrize(
    ("failure", "raised", "said"),
    [
        # As where a container's processes are counted.
        (RuntimeError("can't start new thread"), EngineError, "2 threads cannot be started"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_threads_that_are_not_all_started_leave_none_behind(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException, raised: type[BaseException], said: str | None
) -> None:
    start, begun = threading.Thread.start, []

    def one_alone(thread: threading.Thread) -> None:
        if begun:
            raise failure
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", one_alone)
    with pytest.raises(raised, match=said):
        make(BERT, random_weights(BERT), threads=2)
    begun[0].join(10)
    assert not begun[0].is_alive()

"""What can only be shown on a GPU: kernels against float64, whole models, batch invariance, quick stops, flat memory.

    python bench/gpu_proof.py                # all of it, about a minute
    python bench/gpu_proof.py kernels        # only the kernels: what to run under compute-sanitizer

Prints one line a proof with its figures and, last, how many failed.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from fletcher_kernels import KERNELS
from fletcher_kernels.build import launch
from fletcher_kernels.kernel import Dialect, float64, on_device
from fletcher_kernels.selection import relative_error
from results import resident_bytes

from fletcher_core.engines.mlx.device import device_name, gpu_dialect
from fletcher_core.engines.mlx.engine import MlxEngine
from fletcher_core.errors import RunCancelled
from fletcher_core.models import Architecture, LayerWeights, ModelPackage, Weights, load_weights
from fletcher_core.stop import Stop
from fletcher_core.tokens import TokenBatch, cumulative

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"
Line = tuple[bool, str]


def main() -> None:
    dialect = gpu_dialect()
    if dialect is None:
        sys.exit("MLX finds no GPU here")
    print(f"{device_name(dialect)}, MLX {mx.__version__}", flush=True)
    proofs: dict[str, Callable[[], Iterator[Line]]] = {
        "kernels": lambda: kernels(dialect),
        "golden": golden,
        "invariance": invariance,
        "stop": quick_stop,
        "soak": soak,
    }
    chosen = sys.argv[1:] or list(proofs)
    failed = 0
    for name in chosen:
        started = time.perf_counter()
        for good, text in proofs[name]():
            failed += not good
            print(f"{'ok  ' if good else 'FAIL'} {name:10} {text}", flush=True)
        print(f"     {name:10} {time.perf_counter() - started:.1f} s", flush=True)
    print(f"{failed} failed")
    sys.exit(bool(failed))


def kernels(dialect: Dialect) -> Iterator[Line]:
    """Every kernel, case and type against its float64 reference."""
    running: dict[tuple[str, str], list[Future[tuple[float, str]]]] = {}
    # Each process compiles what it runs, 1 to 2 s a variant: side by side.
    with ProcessPoolExecutor(min(12, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        for kernel in KERNELS.values():
            for kind in kernel.floats:
                cases = range(len(list(kernel.cases(dialect))))
                running[kernel.name, kind] = [pool.submit(kernel_error, kernel.name, at, kind) for at in cases]
        for (name, kind), futures in running.items():
            error, case = max(future.result() for future in futures)
            allowed = KERNELS[name].tolerance[kind]
            yield error <= allowed, f"{name:10} {kind:8} {error:.1e} of {allowed:.1e} ({case})"


def kernel_error(name: str, at: int, kind: str) -> tuple[float, str]:
    """The largest error of one case, and the case's name."""
    kernel, dialect = KERNELS[name], gpu_dialect()
    assert dialect is not None, "MLX finds no GPU here"
    case = list(kernel.cases(dialect))[at]
    arrays = on_device(case.arrays, kind)
    with np.errstate(all="ignore"):  # infinities among the inputs are meant
        wanted = kernel.reference([float64(array) for array in arrays], case.static)
    outputs = launch(kernel, arrays, case.static, dialect)
    mx.eval(outputs)
    return max(relative_error(float64(o), w) for o, w in zip(outputs, wanted, strict=True)), case.name


def golden() -> Iterator[Line]:
    """The golden checkpoints of transformers, in every precision."""
    for name in ("bert_tiny", "bert_hd32", "nomic_tiny"):
        expected = np.load(GOLDEN / name / "expected.npz")
        lengths = expected["lengths"].astype(np.int64)
        rows = [ids[:length] for ids, length in zip(expected["input_ids"], lengths, strict=True)]
        batch = TokenBatch(np.concatenate(rows).astype(np.int32), cumulative(lengths))
        package = ModelPackage.read(GOLDEN / name)
        hidden = np.concatenate([h[:n] for h, n in zip(expected["last_hidden_state"], lengths, strict=True)])
        for precision in ("fp32", "fp16", "bf16"):
            engine = MlxEngine(
                package,
                load_weights(GOLDEN / name, package.architecture),
                normalize=True,
                dimension=package.architecture.hidden_size,
                precision=precision,  # type: ignore[arg-type]
            )
            (vectors,) = engine.run([batch])
            cosine = float((vectors * expected["mean_pooled_normalized"]).sum(axis=1).min())
            error = float(np.abs(engine.hidden_states(batch) - hidden).max())
            # Of the largest value. Rounding the weights of nomic_tiny to fp16 alone moves its states by 2.5e-3.
            bound = {"fp32": 2e-3, "fp16": 2e-3, "bf16": 2e-2}[precision] * float(np.abs(hidden).max())
            replaced = f", replaced: {engine.kernels.replaced}" if engine.kernels.replaced else ""
            yield (
                cosine >= 0.9999 and error <= bound and not replaced,
                f"{name} {precision}: cosine {cosine:.6f}, hidden states within {error:.1e}{replaced}",
            )
            engine.close()


def invariance() -> Iterator[Line]:
    """A text's vector in different company: nearly the same always, the same bits where that was asked for."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 200, 400)
    texts = [random.integers(5, 30000, length).astype(np.int32) for length in lengths]
    for exact in (False, True):
        engine = random_engine(MINILM, batch_invariant=exact)
        vectors = [embed(engine, [texts[i] for i in order]) for order in shuffles(random, len(texts), 6)]
        first = vectors[0]
        cosine = min(float((first * other).sum(axis=1).min()) for other in vectors[1:])
        same = all(np.array_equal(first, other) for other in vectors[1:])
        mode = "batch-invariant" if exact else "ordinary"
        yield cosine >= 0.99999 and (same or not exact), f"{mode}: cosine {cosine:.7f}, same bits {same}"
        rate = tokens_per_second(engine, lengths)
        yield True, f"{mode}: {rate / 1e6:.2f} M tokens/s at batches of up to {engine.buckets[-1]} tokens"
        engine.close()


def shuffles(random: np.random.Generator, count: int, rounds: int) -> Iterator[np.ndarray[Any, Any]]:
    """Orders in which to send `count` texts, some with only a few of the others beside each."""
    yield np.arange(count)
    for _ in range(rounds):
        yield random.permutation(count)


def embed(engine: MlxEngine, texts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Vectors of token sequences, sent in batches of random sizes, back in a fixed order of content."""
    batches, at = [], 0
    sizes = np.random.default_rng(len(texts[0])).integers(1, 60, len(texts))
    for size in sizes:
        part = texts[at : at + size]
        if part:
            batches.append(TokenBatch(np.concatenate(part), cumulative(np.array([len(text) for text in part]))))
        at += size
    vectors = np.concatenate([np.array(v) for v in engine.run(batches)])
    return vectors[sorted(range(len(texts)), key=lambda i: texts[i].tobytes())]


def quick_stop() -> Iterator[Line]:
    """How long after a request to stop the engine is idle again, on the slowest model."""
    engine = random_engine(NOMIC)
    lengths = np.full(20000, 512)
    rows = engine.batching.plan(lengths)
    batches = (TokenBatch(np.full(int(lengths[part].sum()), 7, np.int32), cumulative(lengths[part])) for part in rows)
    waits = []
    for seconds in (0.05, 0.21, 0.4, 0.63, 0.9):
        cancelled, moment = threading.Event(), []
        timer = threading.Timer(seconds, lambda e=cancelled, m=moment: (m.append(time.perf_counter()), e.set()))
        timer.start()
        try:
            for _ in engine.run(batches, Stop(cancelled)):
                pass
        except RunCancelled:
            waits.append(time.perf_counter() - moment[0])
        timer.join()
    yield len(waits) == 5 and max(waits) <= 0.1, f"stopped after {', '.join(f'{w * 1e3:.0f}' for w in waits)} ms"
    engine.close()


def soak() -> Iterator[Line]:
    """100,000 texts of all lengths: memory after each tenth."""
    engine = random_engine(MINILM)
    random = np.random.default_rng(3)
    active, cache, resident = [], [], []
    seconds, tokens = 0.0, 0
    for _ in range(10):
        started = time.perf_counter()
        lengths = random.integers(1, 513, 10_000)
        ids = random.integers(5, 30000, int(lengths.sum())).astype(np.int32)
        texts = TokenBatch(ids, cumulative(lengths))
        for vectors in engine.run(texts.take(rows) for rows in engine.batching.plan(lengths)):
            assert np.isfinite(vectors).all()
        tokens += len(ids)
        seconds += time.perf_counter() - started
        time.sleep(0.1)  # the engine's thread lets go of the last batch a moment after it gave the vectors out
        active.append(engine.memory.active())
        cache.append(engine.memory.cached())
        resident.append(resident_bytes())
    mib = [[round(value / 2**20) for value in series] for series in (active, cache, resident)]
    flat = max(active) - active[0] <= 2**24 and resident[-1] - resident[2] <= 2**26
    yield flat, f"100,000 texts, {tokens / seconds / 1e6:.2f} M tokens/s; MiB active {mib[0]}, cached {mib[1]}"
    yield flat, f"MiB resident on the host {mib[2]}; {len(engine.buckets)} buckets"
    engine.close()


def tokens_per_second(engine: MlxEngine, lengths: np.ndarray[Any, Any]) -> float:
    many = np.tile(lengths, 40)
    ids = np.random.default_rng(1).integers(5, 30000, int(many.sum())).astype(np.int32)
    texts = TokenBatch(ids, cumulative(many))
    batches = [texts.take(rows) for rows in engine.batching.plan(many)]
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        list(engine.run(batches))
        best = min(best, time.perf_counter() - started)
    return len(ids) / best


MINILM = Architecture("bert", 30522, 384, 6, 12, 1536, "gelu", 512, 2, 1e-12)
NOMIC = Architecture("nomic_bert", 30522, 768, 12, 12, 3072, "silu", 2048, 2, 1e-12, 1000.0)


def random_engine(a: Architecture, *, batch_invariant: bool = False) -> MlxEngine:
    """An engine on random weights of a realistic scale."""
    package = ModelPackage(Path(), "random", a, "mean", True, max_length=512)
    return MlxEngine(
        package, random_weights(a), normalize=True, dimension=a.hidden_size, batch_invariant=batch_invariant
    )


def random_weights(a: Architecture) -> Weights:
    random = np.random.default_rng(0)
    h, i = a.hidden_size, a.intermediate_size

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return random.standard_normal(shape, dtype=np.float32) * 0.02

    def bias(size: int) -> np.ndarray[Any, Any] | None:
        return None if a.gated else draw(size)

    def layer() -> LayerWeights:
        gate = draw(i, h) if a.gated else None
        attention = draw(3 * h, h), bias(3 * h), draw(h, h), bias(h), 1 + draw(h), draw(h)
        return LayerWeights(*attention, gate, draw(i, h), bias(i), draw(h, i), bias(h), 1 + draw(h), draw(h))

    positions = None if a.gated else draw(a.max_positions, h)
    layers = tuple(layer() for _ in range(a.layers))
    return Weights(draw(a.vocab_size, h), positions, draw(h), 1 + draw(h), draw(h), layers)


if __name__ == "__main__":
    main()

"""The GPU engine in a process of its own: what that costs, and what happens when the process dies, hangs or is stopped.

    python bench/gpu_failover.py --tokenizer FOLDER [--shapes bert-tiny,minilm,nomic] [--engine mlx]

`--tokenizer` is a folder of `bench/gpu.py --prepare`. Rounds of both alternate; ratios are medians of pairs of rounds.
"""

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from gpu_models import SHAPES, TEXTS_FILE, latency, read_tokens, real_texts, write_model, write_tokens

from fletcher_core import Embedder
from fletcher_core.engines import Engine, EngineSpec
from fletcher_core.engines.failover import FailoverEngine, ProbeIntervals
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.errors import RunCancelled
from fletcher_core.stop import Stop
from fletcher_core.tokens import TokenBatch

ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--shapes", default="bert-tiny,minilm,nomic")
    parser.add_argument("--texts", type=int, default=40_000)
    parser.add_argument("--engine", default="mlx")
    parser.add_argument("--standby", default="native")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="fletcher-gpu-") as folder:
        for name in options.shapes.split(","):
            shape = SHAPES[name]
            model = write_model(name, options.tokenizer, Path(folder))
            texts = real_texts(int(options.texts * shape.share), options.tokenizer / TEXTS_FILE)
            write_tokens(texts, options.tokenizer, shape.max_length, Path(folder))
            tokens = read_tokens(Path(folder), shape.max_length, len(texts))
            spec = EngineSpec(str(model), name, options.engine, "auto", True, shape.hidden)
            started = time.perf_counter()
            inside = spec.load()
            loaded = time.perf_counter()
            isolated = IsolatedEngine(spec)
            print(f"{name} on {isolated.device}: in this process {loaded - started:.1f} s to load, in its own "
                  f"{time.perf_counter() - loaded:.1f} s", flush=True)  # fmt: skip
            right = compare(name, inside, isolated, tokens, texts, model)
            if name == "minilm":
                fail(isolated, replace(spec, choice=options.standby), tokens, right)
            isolated.close()


def compare(
    name: str, inside: Engine, isolated: IsolatedEngine, tokens: TokenBatch, texts: list[str], model: Path
) -> np.ndarray:
    """Print what isolation costs; the vectors."""
    right = vectors_of(inside, tokens)
    assert np.allclose(vectors_of(isolated, tokens), right, atol=5e-3)
    pairs("engine, tokens ready", name, lambda: consume(inside, tokens), lambda: consume(isolated, tokens), len(texts))
    embedder = Embedder.load(model, engine="native", isolation="none")  # for its tokenizer
    ours, theirs = (Embedder(embedder.package, engine, embedder.encoder, embedder.encoder, embedder.card, True)
                    for engine in (inside, isolated))  # fmt: skip
    pairs("embed, from strings", name, lambda: ours.embed(texts), lambda: theirs.embed(texts), len(texts))
    short = [text[:80] for text in texts[:400]]
    for where, embed in (("in this process", ours.embed), ("in its own", theirs.embed)):
        print(
            f"{name}: a text at a time, {where}: {latency(lambda text, embed=embed: embed([text]), short)}", flush=True
        )
    return right


def pairs(what: str, name: str, first: Callable[[], object], second: Callable[[], object], texts: int) -> None:
    first(), second()
    times: list[tuple[float, float]] = []
    for number in range(ROUNDS):
        order = (first, second) if number % 2 else (second, first)
        took = {}
        for work in order:
            started = time.perf_counter()
            work()
            took[work] = time.perf_counter() - started
        times.append((took[first], took[second]))
    ratio = median(one / other for one, other in times)
    print(f"{name}: {what}: {texts / median(t for t, _ in times):,.0f} texts/s in this process, "
          f"{texts / median(t for _, t in times):,.0f} in its own: {ratio:.3f} of the rate", flush=True)  # fmt: skip


def consume(engine: Engine, tokens: TokenBatch) -> None:
    plan = engine.batching.plan(tokens.lengths)
    vectors = np.empty((len(tokens), engine.dimension), np.float32)
    for rows, part in zip(plan, engine.run(tokens.take(rows) for rows in plan), strict=True):
        vectors[rows] = part


def vectors_of(engine: Engine, tokens: TokenBatch) -> np.ndarray:
    plan = engine.batching.plan(tokens.lengths)
    vectors = np.empty((len(tokens), engine.dimension), np.float32)
    for rows, part in zip(plan, engine.run(tokens.take(rows) for rows in plan), strict=True):
        vectors[rows] = part
    return vectors


def fail(isolated: IsolatedEngine, standby: EngineSpec, tokens: TokenBatch, right: np.ndarray) -> None:
    """Kill and freeze the worker in the middle of a stream; stop a stream."""
    for name, sign in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
        engine = FailoverEngine(isolated, lambda: IsolatedEngine(standby), ProbeIntervals(first=1.0))
        few = tokens.take(np.arange(min(4000, len(tokens))))
        plan = engine.batching.plan(few.lengths)
        vectors = np.empty((len(few), engine.dimension), np.float32)
        began = time.perf_counter()
        waits, last = [], began
        for number, (rows, part) in enumerate(zip(plan, engine.run(few.take(rows) for rows in plan), strict=True)):
            vectors[rows] = part
            waits.append(time.perf_counter() - last)
            last = time.perf_counter()
            if number == 1 and isolated.pid:
                os.kill(isolated.pid, sign)
        cosines = (vectors * right[: len(few)]).sum(axis=1)
        health = engine.health
        took = last - began
        while engine.health.standing_in:
            time.sleep(0.05)
        print(f"worker {name} after two batches of {len(plan)}: {len(few)} texts in {took:.1f} s, longest wait "
              f"{max(waits):.1f} s, {health.batches} batches by the CPU, least cosine {cosines.min():.5f}, the GPU "
              f"taken back after {time.perf_counter() - last:.1f} s; {health.last_failure}", flush=True)  # fmt: skip
        again = vectors_of(engine, few)
        print(f"  and then the GPU computes again: least cosine {(again * right[: len(few)]).sum(axis=1).min():.5f}, "
              f"{engine.health.batches - health.batches} batches by the CPU", flush=True)  # fmt: skip
    stopped = []
    for wait in (0.05, 0.1, 0.2, 0.3):
        cancelled = threading.Event()
        at: list[float] = []
        threading.Timer(
            wait, lambda cancelled=cancelled, at=at: (at.append(time.perf_counter()), cancelled.set())
        ).start()
        plan = isolated.batching.plan(tokens.lengths)
        try:
            while True:
                for _ in isolated.run((tokens.take(rows) for rows in plan), Stop(cancelled)):
                    pass
        except RunCancelled:
            stopped.append(f"{1000 * (time.perf_counter() - at[0]):.0f} ms")
    print(f"stopped, and the worker idle again, after {', '.join(stopped)}", flush=True)


if __name__ == "__main__":
    main()

"""Fletcher's side of the GPU benchmark: each function does one thing through the public surface, and times it."""

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from gpu_models import Job, fixed_tokens, latency, rounds

from fletcher_core import Embedder
from fletcher_core.tokens import TokenBatch

Result = dict[str, object]


@cache
def load(folder: Path, engine: str, precision: str) -> Embedder:
    load.cache_clear()  # one model at a time
    return Embedder.load(folder, engine=engine, precision=precision, isolation="none")


def embedder(job: Job) -> Embedder:
    return load(job.folder, job.engine, job.precision)


def plan(engine: object, lengths: np.ndarray) -> list[np.ndarray]:
    return engine.batching.plan(lengths)


def ready(engine: object, tokens: TokenBatch) -> tuple[list[np.ndarray], list[TokenBatch]]:
    """The engine's own cut of `tokens`, made before the clock runs."""
    rows = plan(engine, tokens.lengths)
    return rows, [tokens.take(part) for part in rows]


def run(engine: object, batches: list[TokenBatch]) -> list[np.ndarray]:
    return list(engine.run(iter(batches)))


def engine_only(job: Job) -> Result:
    """Token batches that are ready -> vectors on the host."""
    started = time.perf_counter()
    engine = embedder(job).engine
    rows, batches = ready(engine, job.tokens)
    parts = run(engine, batches)  # warms up
    prepared = time.perf_counter() - started
    vectors = np.empty((len(job.tokens), parts[0].shape[1]), np.float32)
    vectors[np.concatenate(rows)] = np.concatenate(parts)
    job.save("fletcher engine", vectors[: job.kept])
    result = rounds(partial(run, engine, batches))
    return result | {
        "plan": f"{len(batches)} batches, {engine.precision}",
        "warmup_s": prepared,
        "texts": len(job.texts),
    }


def from_text(job: Job) -> Result:
    """list of str -> vectors, and Arrow strings -> Arrow vectors."""
    model, column = embedder(job), pa.array(job.texts)
    few = min(len(job.texts), 2000)
    own = model.encoder.encode(job.texts[:few]).sequences.ids
    same = np.array_equal(own, job.tokens.ids[: job.tokens.cu_seqlens[few]])
    job.save("fletcher embed", model.embed(job.texts)[: job.kept])
    listed = rounds(lambda: model.embed(job.texts)) | {"texts": len(job.texts)}
    model.embed_arrow(column)
    arrow = rounds(lambda: model.embed_arrow(column)) | {"texts": len(job.texts)}
    tokenizer = rounds(lambda: model.encoder.encode(column)) | {"texts": len(job.texts)}
    return {"embed": listed, "arrow": arrow, "tokenizer alone": tokenizer, "tokens as Hugging Face's": same}


def one_text(job: Job) -> Result:
    model = embedder(job)
    return latency(lambda text: model.embed([text]), job.texts)


def fixed(job: Job) -> Result:
    engine, results = embedder(job).engine, {}
    for length, count in job.fixed_counts.items():
        _, batches = ready(engine, fixed_tokens(count, length))
        run(engine, batches)
        results[str(length)] = rounds(partial(run, engine, batches)) | {
            "plan": f"{len(batches)} batches, {engine.precision}",
            "texts": count,
        }
    return results


def roof(scale: int = 1) -> Result:
    """The same matrix product as the peers' roof, through MLX."""
    import mlx.core as mx

    from fletcher_core.engines.mlx.device import gpu_dialect

    gpu_dialect()
    size = 8192 // scale
    a, b = (mx.random.normal((size, size)).astype(mx.bfloat16) for _ in range(2))
    mx.eval(a, b)

    def once() -> None:
        mx.eval([a @ b for _ in range(10)])

    once()
    return {"mlx_bf16_tflops": 10 * 2 * size**3 / rounds(once, 5, 0.0)["best_s"] / 1e12}


# In the order of their weight. Seconds: what each may take on a GPU.
SECTIONS: dict[str, tuple[Callable[[Job], Result], float]] = {
    "engine": (engine_only, 10),
    "text": (from_text, 10),
    "latency": (one_text, 5),
    "fixed": (fixed, 15),
}

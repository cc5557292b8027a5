"""The peers of the GPU engine, in PyTorch: torch.compile and eager encoders on ready batches, sentence-transformers.

The peer is given its best: the minimal encoder of `gpu_encoder.py` beside transformers' own, packed batches without
padding beside sorted padded ones, static shapes under max-autotune, the best of several batch sizes. Batches lie ready
in pinned memory; a round ends when the last vector has reached the host. Compiling and warming up are not counted.
"""

import gc
import time
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from gpu_encoder import BF16, CUDA, DEVICE, Batches, CompiledEncoder, mean_pool, packed_batches, padded_batches
from gpu_models import Job, fixed_tokens, latency, rounds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fletcher_core.models import load_weights

BUDGETS = (16384, 32768, 65536, 131072)
STATIC_BUDGET = 65536
FIXED_BATCH = 65536  # tokens of one batch of the fixed-length rows
ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
SENTENCE_TRANSFORMERS = {  # dtype, batch size; the first is what a plain call does
    "default": (None, 32),
    "bf16, batch 256": (BF16, 256),
    "bf16, batch 1024": (BF16, 1024),
    "fp16, batch 256": (torch.float16, 256),
}
Result = dict[str, object]


def encoder(job: Job, **settings: object) -> CompiledEncoder:
    return CompiledEncoder(job.architecture, load_weights(job.folder, job.architecture), **settings)


def transformer(job: Job, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(job.folder), attn_implementation="sdpa", dtype=dtype)
    return model.to(DEVICE).eval()


def padded_plans(job: Job, multiples: tuple[int, ...] = (16,)) -> dict[str, Batches]:
    return {
        f"{budget // 1024}k padded to {multiple}": padded_batches(job.tokens, budget // job.scale, multiple)
        for budget in BUDGETS
        for multiple in multiples
    }


def reference(job: Job) -> Result:
    """transformers in float32, without tf32: what every other vector is compared with."""
    tokens = job.tokens.take(np.arange(job.kept))
    batches = padded_batches(tokens, 32768 // job.scale, 16)
    forward = transformer_forward(transformer(job, torch.float32))
    return timed(job, "reference", forward, {"32k": batches}, seconds=0.0, least=1)


def packed(job: Job) -> Result:
    plans = {f"{budget // 1024}k": packed_batches(job.tokens, budget // job.scale) for budget in BUDGETS}
    return timed(job, "torch.compile packed", encoder(job, dynamic=True).packed, plans)


def padded(job: Job) -> Result:
    return timed(job, "torch.compile padded", encoder(job, dynamic=True).padded, padded_plans(job, (8, 16, 32)))


def autotune(job: Job) -> Result:
    plans = {f"{STATIC_BUDGET // 1024}k": packed_batches(job.tokens, STATIC_BUDGET // job.scale, static=True)}
    compiled = encoder(job, dynamic=False, mode="max-autotune-no-cudagraphs")
    return timed(job, "torch.compile packed static autotune", compiled.packed, plans)


def compiled_transformer(job: Job) -> Result:
    torch._dynamo.reset()
    model = transformer(job, BF16)
    forward = transformer_forward(torch.compile(model, dynamic=True), torch.compile(mean_pool, dynamic=True))
    return timed(job, "torch.compile transformers", forward, padded_plans(job))


def eager_transformer(job: Job) -> Result:
    return timed(job, "torch eager transformers", transformer_forward(transformer(job, BF16)), padded_plans(job))


def transformer_forward(
    model: Callable[..., object], pool: Callable[[Tensor, Tensor], Tensor] = mean_pool
) -> Callable[[Tensor, Tensor], Tensor]:
    def forward(ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return pool(model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, lengths)

    return forward


def fixed(job: Job) -> Result:
    """Texts of one length each, so no mask, with static shapes: the easiest case that torch.compile can have."""
    a, results = job.architecture, {}
    for length, count in job.fixed_counts.items():
        tokens = fixed_tokens(count, length)
        rows = FIXED_BATCH // job.scale // length
        backend = attention_backend(a.heads, a.head_dim, rows, length)
        compiled = encoder(job, dynamic=False)
        plans = {f"{rows} x {length}, {backend} attention": padded_batches(tokens, rows * length, length)}
        with sdpa_kernel(ATTENTION.get(backend, [*ATTENTION.values(), SDPBackend.MATH])):
            results[str(length)] = timed(job, None, partial(compiled.padded, masked=False), plans)
    return results


def sentence_transformers(job: Job) -> Result:
    """`encode` from a list of str, and one text at a time."""
    from sentence_transformers import SentenceTransformer

    results: Result = {"latency": {}}
    texts = job.texts[: job.kept]
    for name, (dtype, size) in SENTENCE_TRANSFORMERS.items():
        kwargs = {} if dtype is None else {"dtype": dtype}
        model = SentenceTransformer(str(job.folder), device=DEVICE, model_kwargs=kwargs)
        encode = partial(model.encode, batch_size=size, show_progress_bar=False)
        encode(texts[:1024])
        results[name] = rounds(lambda encode=encode: encode(texts), 2, 0.0) | {"texts": len(texts)}
        job.save(f"sentence-transformers {name}", encode(texts).astype(np.float32))
        if size <= 256:
            results["latency"][name] = latency(lambda text, encode=encode: encode([text]), job.texts)
        del model, encode
        release()
    return results


def roof(scale: int = 1) -> Result:
    """What this card does at best: a bf16 matrix product, a copy within its memory (bytes read and written)."""
    size = 8192 // scale
    a, b = (torch.randn(size, size, device=DEVICE, dtype=BF16) for _ in range(2))
    source = torch.randn((1 << 30) // scale**2, device=DEVICE)
    target = torch.empty_like(source)
    product = best_seconds(lambda: torch.mm(a, b))
    copied = best_seconds(lambda: target.copy_(source))
    name = torch.cuda.get_device_name() if CUDA else "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "bf16_tflops": 2 * size**3 / product / 1e12,
        "copy_gb_per_s": 2 * source.nbytes / copied / 1e9,
    }


def best_seconds(launch: Callable[[], object], calls: int = 10) -> float:
    """Best of five of the mean over `calls` launches in a row."""

    def once() -> None:
        for _ in range(calls):
            launch()
        synchronize()

    once()
    return rounds(once, 5, 0.0)["best_s"] / calls


def timed(
    job: Job,
    name: str | None,
    forward: Callable[..., Tensor],
    plans: dict[str, Batches],
    seconds: float = 1.5,
    least: int = 3,
) -> Result:
    """Warm up and time a round of each plan, then take `rounds` of the best; saves its vectors under `name`."""
    count = sum(len(rows) for rows, _ in next(iter(plans.values())))
    out = torch.empty((count, job.architecture.hidden_size), dtype=torch.float32, pin_memory=CUDA)
    tried, started = {}, time.perf_counter()
    for label, batches in plans.items():
        run(forward, batches, out)
        tried[label] = rounds(partial(run, forward, batches, out), 1, 0.0)["best_s"]
    label = min(tried, key=tried.__getitem__)
    prepared = time.perf_counter() - started
    result = rounds(partial(run, forward, plans[label], out), least, seconds)
    if name is not None:
        vectors = np.empty_like(out.numpy())
        vectors[np.concatenate([rows for rows, _ in plans[label]])] = out.numpy()
        job.save(name, vectors[: job.kept])
    release()
    return result | {"plan": label, "tried": tried, "warmup_s": prepared, "texts": count}


def run(forward: Callable[..., Tensor], batches: Batches, out: Tensor) -> None:
    start = 0
    with torch.inference_mode():
        for rows, inputs in batches:
            moved = (part.to(DEVICE, non_blocking=True) if isinstance(part, Tensor) else part for part in inputs)
            out[start : start + len(rows)].copy_(forward(*moved), non_blocking=True)
            start += len(rows)
    synchronize()


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def release() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


@cache
def attention_backend(heads: int, dim: int, batch: int, length: int) -> str:
    """The fastest of torch's attention kernels for unmasked batches of one size."""
    parts = [torch.randn(batch, length, heads, dim, device=DEVICE, dtype=BF16).transpose(1, 2) for _ in range(3)]
    seconds = {}
    for name, backend in ATTENTION.items() if CUDA else ():
        try:
            with sdpa_kernel(backend), torch.inference_mode():
                seconds[name] = best_seconds(lambda: F.scaled_dot_product_attention(*parts), 5)
        except RuntimeError:
            continue  # this kernel does not take such sizes
    return min(seconds, key=seconds.__getitem__) if seconds else "default"


# The first ones run for every shape before the next begin. Seconds: what each may take on a GPU.
SECTIONS: dict[str, tuple[Callable[[Job], Result], float]] = {
    "reference": (reference, 10),
    "packed": (packed, 20),
    "padded": (padded, 25),
    "st": (sentence_transformers, 30),
    "fixed": (fixed, 40),
    "eager": (eager_transformer, 15),
    "autotune": (autotune, 50),
    "transformers": (compiled_transformer, 60),
}

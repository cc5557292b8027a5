"""What each kernel of ours buys: the encoder's GPU time with each one replaced by plain MLX operations in turn.

    python bench/gpu_ablation.py [--tokens 65536] [--shapes minilm,nomic]

What MLX keeps of its compilations is compiled first, in processes side by side.

Also prints, for each kernel, what it reaches of the measured copy bandwidth with the bytes that it must move, and of
the measured rate of a large matrix product with the operations that it must do.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import mlx.core as mx
import numpy as np
from fletcher_kernels import KERNELS, gemm_act
from fletcher_kernels.attention import TILE_ROWS
from fletcher_kernels.selection import FUSED, KernelSet
from gpu_proof import MINILM, NOMIC, random_weights

from fletcher_core.engines.mlx.batch import DeviceBatch, FilledBatch
from fletcher_core.engines.mlx.device import device_name, gpu_dialect
from fletcher_core.engines.mlx.encoder import Encoder
from fletcher_core.engines.mlx.transfer import DirectTransfers
from fletcher_core.models import Architecture, Weights
from fletcher_core.tokens import TokenBatch, cumulative

BERT_TINY = Architecture("bert", 30522, 128, 2, 2, 512, "gelu", 512, 2, 1e-12)
SHAPES = {"bert-tiny": BERT_TINY, "minilm": MINILM, "nomic": NOMIC}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    options = parser.parse_args()
    started = time.perf_counter()
    todo = [(name, off) for name in options.shapes for off in [(), *left_out(SHAPES[name])]]
    with ProcessPoolExecutor(min(12, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_once, todo))
    print(f"compiled in {time.perf_counter() - started:.0f} s", flush=True)
    dialect = gpu_dialect()
    assert dialect is not None, "MLX finds no GPU here"
    copy, product = copy_bandwidth(), product_rate()
    print(
        f"{device_name(dialect)}: copy {copy / 1e9:.0f} GB/s (read + write), product {product / 1e12:.0f} TFLOP/s; "
        f"{options.tokens} tokens a batch, bf16"
    )
    batch = mixed_batch(options.tokens, TILE_ROWS[dialect])
    for name in options.shapes:
        a = SHAPES[name]
        weights = random_weights(a)
        base = forward_seconds(a, weights, KernelSet(dialect), batch)
        flops = options.tokens * a.flops_per_token()
        rate = f"{options.tokens / base / 1e6:.2f} M tokens/s, {flops / base / 1e12:.0f} TFLOP/s"
        print(f"{name:10} all kernels      {base * 1e3:7.2f} ms  {rate}", flush=True)
        for off in left_out(a):
            seconds = forward_seconds(a, weights, KernelSet(dialect, off), batch)
            print(f"{name:10} without {' + '.join(off):17} {seconds * 1e3:7.2f} ms  {seconds / base:.2f}x", flush=True)
        for kernel, (seconds, moved, done) in kernel_times(a, KernelSet(dialect), batch).items():
            shares = f"{moved / seconds / copy:5.0%} of copy {done / seconds / product:5.0%} of product"
            print(f"{name:10} {kernel:10} {seconds * 1e6:8.1f} us {shares}", flush=True)


def left_out(a: Architecture) -> Iterator[tuple[str, ...]]:
    """What an encoder of shape `a` is timed without."""
    for off in (*KERNELS, FUSED):
        if off not in (("activate",) if a.gated else ("rope", "swiglu")):
            # The fused product leaves these nothing to do.
            yield (off, FUSED) if off in ("swiglu", "rope", "activate") else (off,)


def compile_once(todo: tuple[str, tuple[str, ...]]) -> None:
    """One small forward pass, for what MLX compiles and keeps on disk."""
    name, off = todo
    dialect = gpu_dialect()
    assert dialect is not None, "MLX finds no GPU here"
    a = SHAPES[name]
    forward_seconds(a, random_weights(a), KernelSet(dialect, off), mixed_batch(4096, TILE_ROWS[dialect]), 1)


def mixed_batch(tokens: int, tile_rows: int) -> DeviceBatch:
    """Lengths like those of real text, mean 76."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(60), 0.75, tokens).astype(np.int64), 4, 256)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens, side="right"))]
    ids = random.integers(5, 30000, int(lengths.sum())).astype(np.int32)
    return DeviceBatch.upload(
        FilledBatch.fill(TokenBatch(ids, cumulative(lengths)), tokens, tile_rows, 512), DirectTransfers().open()
    )


def forward_seconds(a: Architecture, weights: Weights, kernels: KernelSet, batch: DeviceBatch, count: int = 4) -> float:
    encoder = Encoder(a, weights, mx.bfloat16, kernels, pooling="mean", normalize=True, dimension=a.hidden_size)

    def forward(batch: DeviceBatch = batch) -> mx.array:
        *_, x = encoder.steps(batch)
        return encoder.pool(x, batch)

    assert kernels.dialect is not None
    # Kernels are held to float64 on what they meet first, which takes NumPy long on a large batch.
    mx.eval(forward(mixed_batch(4096, TILE_ROWS[kernels.dialect])))
    return seconds_each(forward, count)


def kernel_times(a: Architecture, kernels: KernelSet, batch: DeviceBatch) -> dict[str, tuple[float, int, int]]:
    """Seconds of one launch, the bytes that it must read and write at least, and its operations in products."""
    tokens, h, i = batch.ids.shape[0], a.hidden_size, a.intermediate_size
    x, y, qkv = (mx.random.normal((tokens, width)).astype(mx.bfloat16) for width in (h, h, 3 * h))
    row, params = mx.ones(h, mx.bfloat16), mx.full((8,), 1e-12)
    mx.eval(x, y, qkv, row, params)
    starts = np.array(batch.cu_seqlens)
    squares = int((np.diff(starts[: int(np.argmax(starts)) + 1]).astype(np.int64) ** 2).sum())
    runs: dict[str, tuple[Callable[[], list[mx.array]], int, int]] = {
        "add_norm": (
            lambda: kernels.run("add_norm", [x, y, row, row, row, params], has_bias=True, wide=False),
            3 * x.nbytes,
            0,
        ),
        "attention": (
            lambda: kernels.run("attention", [qkv, qkv, batch.tiles], heads=a.heads),
            qkv.nbytes + x.nbytes,
            4 * h * squares,
        ),
        "pool": (
            lambda: kernels.run(
                "pool", [x, batch.cu_seqlens], sequences=batch.sequences, dimension=h, pooling=0, normalize=True
            ),
            x.nbytes + 4 * batch.sequences * h,
            0,
        ),
    }
    weight = mx.random.normal((2 * i if a.gated else i, h)).astype(mx.bfloat16)
    if gemm_act.supported((weight.shape[0], h), mx.bfloat16, gated=a.gated):
        packed = gemm_act.pack_weight(weight, gated=a.gated)
        name: gemm_act.Activation = "swiglu" if a.gated else "gelu"
        moved = x.nbytes + weight.nbytes + 2 * tokens * i
        runs[FUSED] = lambda: [gemm_act.gemm_act(x, packed, activation=name)], moved, 2 * tokens * weight.size
    if a.gated:
        gate_up = mx.random.normal((tokens, 2 * i)).astype(mx.bfloat16)
        table = mx.ones((2048, a.head_dim // 2))
        positions = mx.zeros(tokens, mx.int32)
        mx.eval(gate_up, table, positions)
        runs["swiglu"] = lambda: kernels.run("swiglu", [gate_up]), gate_up.nbytes * 3 // 2, 0
        runs["rope"] = lambda: kernels.run("rope", [qkv, positions, table, table], heads=a.heads), 4 * x.nbytes, 0
    return {name: (seconds_each(run, 20), moved, done) for name, (run, moved, done) in runs.items()}


def seconds_each(run: Callable[[], object], count: int, rounds: int = 3) -> float:
    """Best of some rounds, each of several runs queued at once."""
    mx.eval(run())
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        mx.eval([run() for _ in range(count)])
        best = min(best, (time.perf_counter() - started) / count)
    return best


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy of 1 GiB."""
    x = mx.random.normal((2**28,))
    mx.eval(x)
    return 2 * x.nbytes / seconds_each(lambda: x + 1.0, 5)


def product_rate() -> float:
    """Operations a second of a bfloat16 product of 8192 x 8192 x 8192."""
    a, b = (mx.random.normal((8192, 8192)).astype(mx.bfloat16) for _ in range(2))
    mx.eval(a, b)
    return float(2 * 8192**3 / seconds_each(lambda: a @ b, 10))


if __name__ == "__main__":
    main()

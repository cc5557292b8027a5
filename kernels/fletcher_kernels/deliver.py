"""Vectors from the device into host memory that it can write in place (CUDA), instead of page by page on demand."""

import hashlib
from functools import cache
from typing import Any

import mlx.core as mx

from fletcher_kernels.build import read
from fletcher_kernels.kernel import SMALLEST_INPUT, THREADS


def deliver(vectors: mx.array, target: mx.array) -> mx.array:
    """Write `vectors`, float32 (n, d), to the front of `target`, flat float32 in memory that the host may read.

    Returns:
        An array that nobody needs to read: once it is evaluated, the vectors are there.

    Raises:
        ValueError: `target` is too small.
        RuntimeError: (at evaluation) the kernel does not compile, or the device fails.
    """
    if vectors.dtype != mx.float32 or target.dtype != mx.float32 or target.size < vectors.size:
        raise ValueError(f"{vectors.shape} {vectors.dtype} does not fit into {target.size} x {target.dtype}")
    done: mx.array = _built()(
        inputs=[vectors, target],
        grid=(-(-vectors.size // THREADS) * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(SMALLEST_INPUT,)],
        output_dtypes=[mx.int32],
    )[0]
    return done


@cache
def _built() -> Any:
    text = read("cuda/deliver.k")
    return mx.fast.cuda_kernel(
        name=f"fletcher_deliver_{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        input_names=["vectors", "target"],
        output_names=["done"],
        source=text,
    )

"""The plain MLX operations that stand in for a kernel, against float64, on the CPU."""

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed")
pytest.importorskip("ml_dtypes", reason="bfloat16 in NumPy comes from ml_dtypes, which is not installed")

import mlx.core as mx
from fletcher_kernels.kernel import Case, Kernel
from fletcher_kernels.selection import relative_error
from proof import expected, typed, variants

VARIANTS = list(variants())
# MLX's own attention rounds what it adds up to the type under test; the kernel keeps it in float32.
SLACK = {"attention": 3.0}
IDS = [f"{kernel.name}-{case.name}-{dtype}" for kernel, case, dtype in VARIANTS]


@pytest.mark.parametrize(("kernel", "case", "dtype"), VARIANTS, ids=IDS)
def test_a_fallback_is_right(kernel: Kernel, case: Case, dtype: str) -> None:
    arrays = typed(case, dtype)
    planned = kernel.plan(arrays, case.static, "metal").outputs
    with mx.stream(mx.cpu):
        inputs = [
            mx.array(array.astype(np.float32)).astype(mx.bfloat16)
            if array.dtype.name == "bfloat16"
            else mx.array(array)
            for array in arrays
        ]
        outputs = kernel.fallback(inputs, case.static)
        got = [np.array(output.astype(mx.float32) if output.dtype == mx.bfloat16 else output) for output in outputs]
    for name, output, array, wanted, (shape, out_dtype) in zip(
        kernel.outputs, outputs, got, expected(kernel, arrays, case), planned, strict=True
    ):
        assert (output.shape, output.dtype) == (tuple(shape), out_dtype), name
        assert relative_error(array, wanted) <= SLACK.get(kernel.name, 1.0) * kernel.tolerance[dtype], name

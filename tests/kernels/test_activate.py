"""The elementwise activation: GELU's digits, and what becomes of the largest numbers and of infinities."""

import re

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="the Metal text comes from MLX, which is not installed")
pytest.importorskip("ml_dtypes", reason="bfloat16 in NumPy comes from ml_dtypes, which is not installed")

import mlx.core as mx
from emulator import Build, compile_text
from emulator.probe import builds
from emulator.toolchain import unavailable
from fletcher_kernels.activate import ACTIVATE, KINDS
from fletcher_kernels.build import read
from fletcher_kernels.gemm_act import GELU_LOGIT
from fletcher_kernels.kernel import THREADS, Case
from proof import metal_text, typed


def test_gelu_s_digits_are_those_of_the_fused_product() -> None:
    digits = re.findall(r"p = (?:p \* t \+ )?k_splat4\(([-\d.e]+)f\);", read("bodies/activate.k").split("KIND == 0")[1])
    assert [float(number) for number in reversed(digits)] == list(GELU_LOGIT)


@builds
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", KINDS)
def test_the_largest_numbers_and_infinities_come_out_as_from_plain_operations(
    name: str, dtype: str, build: Build
) -> None:
    reason = unavailable(build)
    if reason is not None:
        pytest.skip(reason)
    x = np.zeros(8 * THREADS)
    x[:7] = [np.inf, -np.inf, np.nan, 65504.0, -65504.0, 1e4, -1e4]
    case = Case(name, (x,), {"kind": KINDS.index(name)})
    arrays = typed(case, dtype)
    plan = ACTIVATE.plan(arrays, case.static, "metal")
    kernel = compile_text(metal_text(ACTIVATE, arrays, plan), build)
    outputs = {"out": (x.shape, np.dtype(dtype))}
    (got,) = kernel.run({"x": arrays[0]}, outputs, plan.grid, (plan.threads, 1, 1))
    with mx.stream(mx.cpu):
        plain = np.array(ACTIVATE.fallback([mx.array(arrays[0])], case.static)[0])
    np.testing.assert_array_equal(got, plain)
    assert np.isfinite(got[3:]).all()

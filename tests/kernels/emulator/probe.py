"""Kernels of a few lines, for the tests of the emulator: captured, compiled, or skipped with the reason."""

from collections.abc import Mapping

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from .capture import Output, Template, capture
from .run import CompiledKernel, compile_text
from .toolchain import Build, unavailable

HEADER = """
#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;
"""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
INT32, UINT32 = np.dtype(np.int32), np.dtype(np.uint32)
MLX_TYPES = {FLOAT32: mx.float32, FLOAT16: mx.float16, BFLOAT16: mx.bfloat16}
ONE_SIMDGROUP = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1)}
TWO_SIMDGROUPS = {"grid": (64, 1, 1), "threadgroup": (64, 1, 1)}

builds = pytest.mark.parametrize("build", Build, ids=lambda build: build.value)
element_types = pytest.mark.parametrize("dtype", MLX_TYPES, ids=lambda dtype: dtype.name)


def compiled(
    source: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, Output],
    build: Build = Build.STRICT,
    template: Template = (),
    header: str = HEADER,
) -> CompiledKernel:
    reason = unavailable(build)
    if reason is not None:
        pytest.skip(reason)
    return compile_text(capture("probe", header, source, inputs, outputs, template), build)


def numbers(count: int, dtype: np.dtype = FLOAT32) -> np.ndarray:
    return np.random.default_rng(count).standard_normal(count).astype(dtype)

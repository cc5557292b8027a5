"""The fused matrix product's CUDA text: NVIDIA's compiler takes every schedule, and keeps its sums in registers."""

import re

import pytest

pytest.importorskip("mlx.core", reason="the kernels' package needs MLX, which is not installed")

import nvrtc
from fletcher_kernels.build import read
from fletcher_kernels.gemm_act import Activation, header, schedule

pytestmark = [
    pytest.mark.skipif(nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc"),
    pytest.mark.xdist_group("nvrtc"),  # on one worker, which compiles CUDA's headers once
]

# Of a thread, outside its loop over the operands; its sums alone are 512.
SPILLED_BYTES = 80


@pytest.mark.parametrize("bfloat", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "activation", "head_dim"),
    [
        (512, 128, "gelu", 0),
        (1536, 384, "gelu", 0),
        (4096, 1024, "relu", 0),
        (6144, 768, "swiglu", 0),
        (2304, 768, "rope", 64),
        (384, 128, "rope", 64),
        (384, 128, "rope", 32),
    ],
)
def test_it_compiles_for_hopper_and_spills_next_to_nothing(
    n: int, k: int, activation: Activation, head_dim: int, bfloat: bool
):
    gated = activation == "swiglu"
    how = schedule(n, k, gated, head_dim)
    assert how is not None
    turn = "const int* positions, const float* cosines, const float* sines, " if head_dim else ""
    element = "__nv_bfloat16" if bfloat else "__half"
    text = (
        f"{header(n, k, activation, bfloat, not gated, how, head_dim)}\nnamespace mlx::core::cu {{\n"
        f"__global__ void kernel(const {element}* a, const {element}* weight, const {element}* bias, {turn}"
        f"{element}* out, unsigned char* maps, const int* a_shape) {{\n{read('cuda/gemm_act.k')}\n}}\n}}\n"
    )
    log = nvrtc.compile_cuda(text).log
    (spilled,) = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert max(map(int, spilled)) <= SPILLED_BYTES, log

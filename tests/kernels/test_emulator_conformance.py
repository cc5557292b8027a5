"""MLX's own Metal kernels, proven on Apple's hardware, give the right numbers in the emulator.

Above all this pins the layout of 8x8 matrices over the lanes: MLX's attention computes with it. The headers are read
from the installed wheel and never copied. It has no text of MLX's layer_norm and rms_norm; softmax and logsumexp reduce
a row in the same manner.
"""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="the Metal headers come with MLX, which is not installed")

import mlx.core as mx
from emulator import Build, CompiledKernel, Schedule, compile_text, unavailable

INCLUDE = Path(mx.__file__).parent / "include"
KERNELS = INCLUDE / "mlx" / "backend" / "metal" / "kernels"
ATTENTION = "mlx/backend/metal/kernels/steel/attn"

# From MLX's utils.h, which as a whole leans on what only Apple's compiler has (constructors by address space).
PREAMBLE = """
#include <metal_stdlib>
#include <metal_simdgroup>
template <typename T>
struct Limits {
  static constexpr constant T min = -metal::numeric_limits<T>::infinity();
  static constexpr constant T finite_min = metal::numeric_limits<T>::lowest();
};
template <typename T, typename U>
inline T ceildiv(T n, U m) { return (n + m - 1) / m; }
"""
ELEMENTS = {"float": np.float32, "half": np.float16, "bfloat": ml_dtypes.bfloat16}
PARAMETERS = np.dtype(
    [(name, np.int32) for name in ("B", "H", "D", "qL", "kL", "gqa_factor")]
    + [("scale", np.float32)]
    + [(name, np.int32) for name in ("NQ", "NK", "NQ_aligned", "NK_aligned", "qL_rem", "kL_rem", "qL_off")]
    + [(f"{name}_strides", np.int64, 3) for name in "QKVO"]
)

builds = pytest.mark.parametrize("build", Build, ids=lambda build: build.value)


def header(name: str) -> str:
    path = KERNELS / name
    if not path.exists():
        pytest.skip(f"this MLX has no {name}")
    return path.read_text()


def compiled(text: str, instantiation: str, build: Build) -> CompiledKernel:
    reason = unavailable(build)
    if reason is not None:
        pytest.skip(reason)
    return compile_text(PREAMBLE + text, build, instantiation, include=(INCLUDE,))


def rows(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(width).standard_normal((count, width)).astype(np.float16)


@builds
@pytest.mark.parametrize("kernel", ["softmax_single_row", "softmax_looped"])
@pytest.mark.parametrize("width", [512, 700])
def test_mlx_softmax_is_that_of_float64(build: Build, kernel: str, width: int) -> None:
    text = "#define SOFTMAX_N_READS 4\n" + header("softmax.h")
    softmax = compiled(text, f"{kernel}<half, float>", build)
    x = rows(5, width)
    # MLX gives the looped kernel all the threads there are: it reads a slot of every one of 32 simdgroups.
    threads = 1024 if kernel == "softmax_looped" else -(-width // 128) * 32
    inputs, outputs = {"in": x, "axis_size": np.array(width, np.int32)}, {"out": (x.shape, np.dtype(np.float16))}
    exponentials = np.exp(x.astype(np.float64))
    for schedule in Schedule:
        (y,) = softmax.run(inputs, outputs, (5 * threads, 1, 1), (threads, 1, 1), schedule)
        np.testing.assert_allclose(y, exponentials / exponentials.sum(-1, keepdims=True), atol=2e-5)


@builds
def test_mlx_logsumexp_is_that_of_float64(build: Build) -> None:
    text = header("logsumexp.h").replace("#pragma once", "")
    logsumexp = compiled(text, "logsumexp<half, float, 4>", build)
    x = rows(5, 512)
    inputs, outputs = {"in": x, "axis_size": np.array(512, np.int32)}, {"out": ((5,), np.dtype(np.float16))}
    (y,) = logsumexp.run(inputs, outputs, (5 * 128, 1, 1), (128, 1, 1))
    np.testing.assert_allclose(y, np.log(np.exp(x.astype(np.float64)).sum(-1)), rtol=1e-3)


def attention_text() -> str:
    """The kernel with its function constants off, and only those headers that it needs."""
    text = header("steel/attn/kernels/steel_attention.h")
    text = re.sub(r"constant bool (\w+) \[\[function_constant\(\d+\)\]\];", r"constant const bool \1 = false;", text)
    needed = "".join(f'#include "{ATTENTION}/{name}.h"\n' for name in ("params", "transforms", "loader", "mma"))
    return text.replace(f'#include "{ATTENTION}/attn.h"', needed)


def attention_parameters(q: np.ndarray, k: np.ndarray, block_q: int, block_k: int) -> np.ndarray:
    batch, heads, length_q, head_dim = q.shape
    length_k = k.shape[2]
    made = np.zeros(1, PARAMETERS)
    made["B"], made["H"], made["D"], made["qL"], made["kL"] = batch, heads, head_dim, length_q, length_k
    made["gqa_factor"], made["scale"] = 1, head_dim**-0.5
    made["NQ"], made["NK"] = -(-length_q // block_q), -(-length_k // block_k)
    made["NQ_aligned"], made["NK_aligned"] = length_q // block_q, length_k // block_k
    made["qL_rem"], made["kL_rem"] = length_q % block_q, length_k % block_k
    for name, array in (("Q", q), ("K", k), ("V", k), ("O", q)):
        made[f"{name}_strides"] = [stride // array.itemsize for stride in array.strides[:3]]
    return made


@pytest.mark.parametrize(
    ("head_dim", "element"), [(32, "half"), (64, "half"), (64, "bfloat"), (64, "float"), (128, "half")]
)
def test_mlx_attention_is_that_of_float64(head_dim: int, element: str) -> None:
    block_q, block_k = 32, 32 if head_dim < 128 else 16
    blocks = f"{block_q}, {block_k}, {head_dim}, {head_dim}"
    # STRICT only: the headers choose templates by the address space of a pointer.
    attention = compiled(attention_text(), f"attention<{element}, {blocks}, 4, 1, bool, float>", Build.STRICT)
    random, dtype = np.random.default_rng(head_dim), np.dtype(ELEMENTS[element])
    q = random.standard_normal((1, 2, 45, head_dim)).astype(dtype)
    k, v = (random.standard_normal((1, 2, 75, head_dim)).astype(dtype) for _ in range(2))
    parameters = attention_parameters(q, k, block_q, block_k)
    unused = {"mask_params": np.zeros(3, np.int64), "mask": np.zeros(8, np.bool_), "sinks": np.zeros(8, dtype)}
    (output, _) = attention.run(
        {"Q": q, "K": k, "V": v, "params": parameters, **unused},
        {"O": (q.shape, dtype), "lse": ((1,), np.dtype(np.float32))},
        grid=(32 * int(parameters["NQ"][0]), 4 * 2, 1),
        threadgroup=(32, 4, 1),
    )
    scores = np.exp(q.astype(np.float64) @ k.astype(np.float64).swapaxes(2, 3) * head_dim**-0.5)
    expected = scores / scores.sum(-1, keepdims=True) @ v.astype(np.float64)
    tolerance = {"float": 1e-5, "half": 1e-3, "bfloat": 1e-2}[element]
    np.testing.assert_allclose(output.astype(np.float64), expected, atol=tolerance)

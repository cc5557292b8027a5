"""A matrix product with its activation in one CUDA kernel, for Hopper: act(a @ weight.T + bias), written once.

In: `a` of (tokens, k), and a weight packed once by `pack_weight` into the layout of shared memory. Out: (tokens, n), or
(tokens, n / 2) for SwiGLU. It saves the write and two reads of the product before its activation. "rope" is not an
activation but the rotation of query and key, the leading two thirds of a packed QKV. `dense_act` is the same in plain
MLX operations, `reference` in NumPy's float64; of "rope", `fletcher_kernels.rope` has both.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from math import erf
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_kernels.build import included, read
from fletcher_kernels.launching import launches_singly

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "silu", "swiglu", "rope"]
ACTIVATIONS: tuple[Activation, ...] = ("none", "gelu", "gelu_tanh", "relu", "silu", "swiglu", "rope")

# Of one block of an H100 or H200, and their number of multiprocessors (MLX 0.32 does not tell it).
SHARED_MEMORY = 232448
MULTIPROCESSORS = 132

# sigmoid(x * p(x^2)) = Phi(x), p of degree 4 in x^2, fitted on [0, 6] for the smallest largest error of x * sigmoid
# (Lawson's weights on the logit of Phi): 3.1e-6 anywhere. p stays positive, so nothing needs a clamp.
GELU_LOGIT = (1.59565515, 7.29398616e-2, -2.50952447e-4, -6.09343888e-5, 2.22526300e-6)

_TURN = ["positions", "cosines", "sines"]


@dataclass(frozen=True)
class Schedule:
    """How the kernel divides its work; gemm_act.h says what the two kinds do.

    Attributes:
        stationary: columns of the weight stay in shared memory (k of 512 at most), else both operands stream.
        block_columns: rows of the weight in a tile.
        stages: of a ring.
        pass_columns: output columns that an epilogue moves at a time.
        consumers: warpgroups that multiply.
        lag: steps by which a consumer starts after the one before it (streaming).
        cluster: blocks that share what they load of the weight (streaming); more than 1 only if `launches_singly`.
        lockstep: blocks keep one slab of the weight and pass over the rows together (stationary).
        paired: two reciprocals by one.
    """

    stationary: bool
    block_columns: int
    stages: int
    pass_columns: int = 64
    consumers: int = 2
    lag: int = 0
    cluster: int = 1
    lockstep: bool = False
    paired: bool = False

    @property
    def rings(self) -> int:
        return self.consumers if self.stationary else 1

    @property
    def threads(self) -> int:
        return 128 * (self.consumers + 1)

    def shared_memory(self, k: int) -> int:
        """Bytes; the same sum as in gemm_act.h, with room for its barriers."""
        weight = self.block_columns * 128
        rows = 64 if self.stationary else 64 * self.consumers
        stage = rows * 128 + (0 if self.stationary else weight)
        resident = k // 64 * weight if self.stationary else 0
        staging = 4 * self.consumers * 16 * (self.pass_columns * 2 + 16)
        barriers = 2 * self.rings * self.stages + (k // 64 + 1 if self.stationary else 0)
        return resident + self.rings * self.stages * stage + staging + self.rings * 128 + 8 * barriers


def schedule(n: int, k: int, gated: bool, head_dim: int = 0) -> Schedule | None:
    """What runs fastest for a weight of (n, k), or None where the kernel does not cover it.

    `head_dim` is of "rope": a head, and what is turned, must be whole tiles.
    """
    how = _fastest(n, k, gated)
    if how is None or not head_dim:
        return how
    if how.block_columns == 192:
        how = replace(how, block_columns=128)
    whole = head_dim % 16 == 0 and how.block_columns % head_dim == 0 and n % 3 == 0
    return how if whole and n // 3 * 2 % how.block_columns == 0 else None


def _fastest(n: int, k: int, gated: bool) -> Schedule | None:
    if k % 64 or k < 64 or n % 128 or (gated and n % 256):
        return None
    if 256 < k <= 384:
        # Measured on an H100, n = 1536: 107 us at 32,768 rows and 364 us at 131,072, against 115 and 404 of two
        # consumers over 192 columns; MLX's product and activation take 166 and 674.
        return Schedule(True, 128, stages=4, consumers=3, lockstep=True, paired=True)
    if k <= 256:
        columns = next(c for c in (256, 192, 128) if n % c == 0)
        if gated and columns == 192:
            columns = 128
        wanted = Schedule(True, columns, stages=4)
        return wanted if wanted.shared_memory(k) <= SHARED_MEMORY else Schedule(True, columns, stages=3)
    if n % 256 or k < 256:
        return None
    # SwiGLU of 6144 x 768 and 32,768 rows on an H100: 472 us, 499 us without a cluster; MLX's product alone takes 471.
    return Schedule(False, 256, stages=4, pass_columns=128, lag=2, cluster=2 if launches_singly() else 1)


@dataclass(frozen=True)
class PackedWeight:
    """A weight of (n, k) as [n / block][k / 64][block][64], swizzled; gates and ups alternate by eight."""

    data: mx.array
    n: int
    k: int
    gated: bool
    schedule: Schedule
    head_dim: int = 0

    @property
    def columns(self) -> int:
        """Of the output."""
        return self.n // 2 if self.gated else self.n


def _order(n: int, gated: bool) -> npt.NDArray[np.int64]:
    """Row of the weight at each packed row: eight gates, then their eight ups, where gated."""
    rows = np.arange(n)
    return rows.reshape(2, n // 16, 8).transpose(1, 0, 2).reshape(-1) if gated else rows


def packed_index(n: int, k: int, gated: bool, block: int) -> npt.NDArray[np.int64]:
    """For each piece of eight of the packed weight, in order, the piece of eight of the (n, k) weight it holds."""
    tile, step, row, piece = np.ogrid[: n // block, : k // 64, :block, :8]
    of_row = _order(n, gated)[tile * block + row]
    index: npt.NDArray[np.int64] = of_row * (k // 8) + step * 8 + (piece ^ (row & 7))
    return index.reshape(-1)


def pack_weight(
    weight: mx.array, *, gated: bool = False, head_dim: int = 0, how: Schedule | None = None
) -> PackedWeight:
    """Pack a weight of (n, k), float16 or bfloat16, once at load. A gated one is its gate's rows, then its up's.

    `head_dim` for "rope" only: the rows are those of query, key and value, in heads of so many.

    Raises:
        ValueError: the kernel does not cover this size.
    """
    n, k = weight.shape
    how = how or schedule(n, k, gated, head_dim)
    if how is None:
        raise ValueError(f"gemm_act does not cover a weight of {n} x {k}; `supported` tells which it does")
    index = mx.array(packed_index(n, k, gated, how.block_columns).astype(np.uint32))
    data = mx.take(weight.reshape(n * k // 8, 8), index, axis=0).reshape(n, k)
    mx.eval(data)
    return PackedWeight(data, n, k, gated, how, head_dim)


def supported(shape: tuple[int, int], dtype: mx.Dtype, *, gated: bool = False, head_dim: int = 0) -> bool:
    """Whether the kernel covers a weight of this shape and type on the default device, a Hopper GPU."""
    if dtype not in (mx.float16, mx.bfloat16) or schedule(*shape, gated, head_dim) is None:
        return False
    if not mx.cuda.is_available() or mx.default_device().type != mx.gpu:
        return False
    info = mx.device_info()
    return (info.get("compute_capability_major"), info.get("compute_capability_minor")) == (9, 0)


def gemm_act(
    a: mx.array,
    packed: PackedWeight,
    bias: mx.array | None = None,
    *,
    activation: Activation = "none",
    turn: tuple[mx.array, mx.array, mx.array] | None = None,
) -> mx.array:
    """act(a @ weight.T + bias), (tokens, n); for "swiglu" silu(gate) * up, (tokens, n / 2), without a bias.

    Args:
        a: (tokens, k), of the weight's type.
        packed: of `pack_weight`; gated if and only if the activation is "swiglu".
        bias: (n,), of the weight's type.
        turn: for "rope" and only there: int32 position of each token, and float32 cosines and sines of (positions,
            head_dim / 2).

    Raises:
        ValueError: the arguments do not fit one another.
        RuntimeError: (at evaluation) the kernel does not compile, or the device fails.
    """
    tokens, k = a.shape
    if k != packed.k or a.dtype != packed.data.dtype or packed.gated != (activation == "swiglu"):
        raise ValueError(
            f"a of {a.shape} {a.dtype} with {activation} does not fit a weight of {packed.n} x {packed.k} "
            f"{packed.data.dtype}{', gated' if packed.gated else ''}"
        )
    if bias is not None and (packed.gated or bias.shape != (packed.n,) or bias.dtype != a.dtype):
        raise ValueError(f"the bias must be of ({packed.n},) and {a.dtype}, and none for swiglu")
    if (turn is not None) != (activation == "rope") or bool(packed.head_dim) != (activation == "rope"):
        raise ValueError(f"angles and heads belong to 'rope', the activation is {activation!r}")
    if tokens == 0:
        return mx.zeros((0, packed.columns), a.dtype)
    how, bfloat = packed.schedule, a.dtype == mx.bfloat16
    kernel = _built(packed.n, k, activation, bfloat, bias is not None, how, packed.head_dim)
    out: mx.array = kernel(
        inputs=[a, packed.data, *([] if bias is None else [bias]), *(turn or ())],
        grid=(MULTIPROCESSORS // how.cluster * how.cluster * how.threads, 1, 1),
        threadgroup=(how.threads, 1, 1),
        output_shapes=[(tokens, packed.columns), (MULTIPROCESSORS * how.rings * 128,)],
        output_dtypes=[a.dtype, mx.uint8],
    )[0]
    return out


def header(n: int, k: int, activation: Activation, bfloat: bool, biased: bool, how: Schedule, head_dim: int = 0) -> str:
    """All that stands before the generated function: the sizes, `wgmma` for them, and gemm_act.h."""
    sizes = {
        "K": k,
        "N": n,
        "BN": how.block_columns,
        "STAGES": how.stages,
        "PASS": how.pass_columns,
        "CONSUMERS": how.consumers,
        "LAG": how.lag,
        "CLUSTER": how.cluster,
        "THREADS": how.threads,
        "SHARED": how.shared_memory(k),
        "ACTIVATION": ACTIVATIONS.index(activation),
        "HEAD": head_dim,
        "ROTATED": n // 3 * 2 if head_dim else 0,
    }
    constants = "".join(f"constexpr int {name} = {value};\n" for name, value in sizes.items())
    switches = {"STATIONARY": how.stationary, "IS_BFLOAT": bfloat, "LOCKSTEP": how.lockstep, "PAIRED": how.paired}
    flags = "".join(f"constexpr bool {name} = {str(value).lower()};\n" for name, value in switches.items())
    gelu = "".join(f"constexpr float GELU_{i} = {c * -np.log2(np.e):.9e}f;\n" for i, c in enumerate(GELU_LOGIT))
    return (
        "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"
        f"#define GEMM_CLUSTER {how.cluster}\n#define GEMM_BIAS {'bias' if biased else 'nullptr'}\n"
        f"#define GEMM_ANGLES {', '.join(_TURN if head_dim else ['nullptr'] * 3)}\n"
        f"namespace fletcher_gemm {{\nusing element = {'__nv_bfloat16' if bfloat else '__half'};\n"
        f"{constants}{flags}{gelu}{_wgmma(how.block_columns, 'bf16' if bfloat else 'f16')}}}\n"
        f"{included('cuda/gemm_act.h')}"
    )


def _wgmma(columns: int, operand: str) -> str:
    """sums (+)= 64 x 16 of A times 16 x `columns` of B, both from shared memory with rows along k."""
    count = columns // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    sums = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
    return (
        f"__device__ __forceinline__ void wgmma(float (&sums)[{count}], unsigned long long a, unsigned long long b, "
        'int add) {\n  asm volatile("{\\n.reg .pred p;\\nsetp.ne.b32 p, %' + str(count + 2) + ", 0;\\n"
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{operand}.{operand} "
        f"{{{registers}}}, %{count}, %{count + 1}, p, 1, 1, 0, 0;\\n"
        f'}}"\n      : {sums}\n      : "l"(a), "l"(b), "r"(add));\n}}\n'
    )


@cache
def _built(n: int, k: int, activation: Activation, bfloat: bool, biased: bool, how: Schedule, head_dim: int = 0) -> Any:
    before, text = header(n, k, activation, bfloat, biased, how, head_dim), read("cuda/gemm_act.k")
    # MLX finds a compiled CUDA kernel by its name alone: another text must have another name.
    digest = hashlib.sha256((before + read("cuda/gemm_act.h") + text).encode()).hexdigest()[:12]
    return mx.fast.cuda_kernel(
        name=f"fletcher_gemm_act_{digest}",
        input_names=["a", "weight", *(["bias"] if biased else []), *(_TURN if head_dim else [])],
        output_names=["out", "maps"],
        header=before,
        source=text,
        shared_memory=how.shared_memory(k),
    )


def dense_act(a: mx.array, weight: mx.array, bias: mx.array | None = None, *, activation: Activation) -> mx.array:
    """The same in plain MLX operations, with the weight as it was before packing."""
    return activate(a @ weight.T if bias is None else mx.addmm(bias, a, weight.T), activation)


def activate(x: mx.array, activation: Activation) -> mx.array:
    """The activation alone, in float32 between two casts."""
    y = x.astype(mx.float32)
    if activation == "gelu":
        y = y * 0.5 * (1.0 + mx.erf(y * 0.7071067811865476))
    elif activation == "gelu_tanh":
        y = y * 0.5 * (1.0 + mx.tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)))
    elif activation == "silu":
        y = y * mx.sigmoid(y)
    elif activation == "relu":
        y = mx.maximum(y, 0.0)
    elif activation == "swiglu":
        gate, up = mx.split(y, 2, axis=-1)
        y = gate * mx.sigmoid(gate) * up
    return y.astype(x.dtype)


def reference(
    a: npt.NDArray[Any], weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None, activation: Activation
) -> npt.NDArray[np.float64]:
    """The same in float64."""
    x = a.astype(np.float64) @ weight.astype(np.float64).T + (0.0 if bias is None else bias.astype(np.float64))
    return activate_reference(x, activation)


def activate_reference(x: npt.NDArray[np.float64], activation: Activation) -> npt.NDArray[np.float64]:
    """The activation alone, in float64."""
    if activation == "gelu":
        return np.asarray(0.5 * x * (1.0 + np.vectorize(erf, otypes=[np.float64])(x * 0.5**0.5)))
    if activation == "gelu_tanh":
        return np.asarray(0.5 * x * (1.0 + np.tanh((2.0 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))
    if activation == "relu":
        return np.maximum(x, 0.0)
    if activation == "silu":
        return np.asarray(x / (1.0 + np.exp(-x)))
    if activation == "swiglu":
        gate, up = np.split(x, 2, axis=-1)
        return np.asarray(gate / (1.0 + np.exp(-gate)) * up)
    return np.asarray(x)

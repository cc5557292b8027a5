"""R1 to R4, the kernels' Metal text: what it says, that two compilers take it, and that it is right in any order.

FLETCHER_GOLDEN=write regenerates tests/data/metal from what MLX says now; look at the difference before a commit.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="the Metal text comes from MLX, which is not installed")
pytest.importorskip("ml_dtypes", reason="bfloat16 in NumPy comes from ml_dtypes, which is not installed")

from emulator import Build
from fletcher_kernels import KERNELS
from fletcher_kernels.attention import TILE_ROWS, attention_tiles
from fletcher_kernels.build import header
from fletcher_kernels.kernel import SMALLEST_INPUT, Case, Kernel, at_least
from fletcher_kernels.norm import ROWS, epsilon_array, sequences_array
from fletcher_kernels.pool import POOLING
from hypothesis import given, settings
from hypothesis import strategies as st
from proof import metal_cases, metal_text, prove, typed, variants

GOLDEN = Path(__file__).parents[1] / "data" / "metal"
VARIANTS = list(variants())
IDS = [f"{kernel.name}-{case.name}-{dtype}" for kernel, case, dtype in VARIANTS]
builds = pytest.mark.parametrize("build", Build, ids=lambda build: build.value)
seeds = st.integers(0, 2**32 - 1)

# Where an example needs a compilation of its own, the same examples every time: the cache of objects serves them.
fixed = settings(max_examples=10, deadline=None, derandomize=True, database=None)
drawn = settings(max_examples=25, deadline=None)


def text_of(kernel: Kernel, case: Case, dtype: str) -> str:
    arrays = typed(case, dtype)
    return metal_text(kernel, arrays, kernel.plan(arrays, case.static, "metal"))


@pytest.mark.parametrize("name", KERNELS)
def test_the_text_is_the_golden_one(name: str) -> None:
    """The first case in float16; our own header, which stands in it word by word, as one line."""
    text = text_of(KERNELS[name], metal_cases(name)[0], "float16")
    assert header("metal") in text
    text = text.replace(header("metal"), "// dialect/metal.h\n").rstrip() + "\n"
    path = GOLDEN / f"{name}.metal"
    if os.environ.get("FLETCHER_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8"), f"if it should be: FLETCHER_GOLDEN=write pytest {Path(__file__).name}"


@pytest.mark.parametrize(("kernel", "case", "dtype"), VARIANTS, ids=IDS)
def test_every_input_arrives_in_device_memory(kernel: Kernel, case: Case, dtype: str) -> None:
    """MLX puts fewer than eight elements into `constant` memory, for which a pipeline of its own would be compiled."""
    text = text_of(kernel, case, dtype)
    parameters = text[text.index("[[kernel]] void") :].split(") {", 1)[0]
    for name in (*kernel.inputs, *kernel.outputs):
        assert f"* {name} [[buffer(" in parameters
    assert "constant" not in parameters
    assert all(array.size >= SMALLEST_INPUT for array in typed(case, dtype))


@builds
@pytest.mark.parametrize(("kernel", "case", "dtype"), VARIANTS, ids=IDS)
def test_a_kernel_is_right_in_every_order_of_its_threads(
    kernel: Kernel, case: Case, dtype: str, build: Build, record_property: Callable[[str, object], None]
) -> None:
    proof = prove(kernel, case, dtype, build)
    record_property("kernel", [kernel.name, dtype, proof.error, proof.seconds])


@pytest.mark.parametrize(("heads", "dim", "rotated"), [(2, 32, False), (2, 64, True), (1, 128, False)])
@settings(drawn)
@given(lengths=st.lists(st.integers(1, 80), min_size=1, max_size=4), seed=seeds)
def test_attention_takes_any_lengths(heads: int, dim: int, rotated: bool, lengths: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    qkv = random.normal(size=(int(cu_seqlens[-1]), 3 * heads * dim))
    qk = random.normal(size=(len(qkv), 2 * heads * dim)) if rotated else qkv
    tiles = attention_tiles(cu_seqlens, TILE_ROWS["metal"])
    prove(KERNELS["attention"], Case(f"lengths {lengths}", (qk, qkv, tiles), {"heads": heads}), "float16", Build.STRICT)


@settings(fixed)
@given(quads=st.integers(2, 512), blocks=st.integers(1, 2), has_bias=st.booleans(), wide=st.booleans(), seed=seeds)
def test_add_norm_takes_any_width(quads: int, blocks: int, has_bias: bool, wide: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, residual = random.normal(size=(2, blocks * ROWS, 4 * quads))
    bias, weight, shift = random.normal(size=(3, 4 * quads))
    arrays = (x, residual, bias, weight, shift, epsilon_array(1e-5))
    static = {"has_bias": has_bias, "wide": wide}
    prove(KERNELS["add_norm"], Case(f"{x.shape}", arrays, static), "float16", Build.STRICT)


@settings(fixed)
@given(
    quads=st.integers(2, 512),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    has_places=st.booleans(),
    seed=seeds,
)
def test_embed_norm_takes_any_width_and_reads_the_last_rows(
    quads: int, lengths: list[int], has_places: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    lengths = [*lengths, ROWS - sum(lengths) % ROWS]
    words = int(random.integers(1, 30))
    ids = random.integers(0, words, sum(lengths)).astype(np.int32)
    ids[-1] = words - 1
    cu_seqlens = at_least(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    table, places = random.normal(size=(words, 4 * quads)), random.normal(size=(max(lengths), 4 * quads))
    weight, shift = random.normal(size=(2, 4 * quads))
    sizes = cu_seqlens, sequences_array(len(lengths))
    arrays = (ids, *sizes, table, places, weight, shift, epsilon_array(1e-5))
    prove(KERNELS["embed_norm"], Case(f"{lengths}", arrays, {"has_places": has_places}), "float16", Build.STRICT)


@settings(fixed)
@given(
    quads=st.integers(1, 510),
    cut=st.integers(0, 40),
    pooling=st.sampled_from(sorted(POOLING)),
    normalize=st.booleans(),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    seed=seeds,
)
def test_pool_takes_any_width_and_lengths(
    quads: int, cut: int, pooling: str, normalize: bool, lengths: list[int], seed: int
) -> None:
    cu_seqlens = at_least(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    x = np.random.default_rng(seed).normal(size=(sum(lengths), max(4 * (quads + cut), SMALLEST_INPUT)))
    static = {
        "sequences": len(lengths),
        "dimension": 4 * quads,
        "pooling": POOLING[pooling],
        "normalize": normalize,
    }
    prove(KERNELS["pool"], Case(f"{pooling} {x.shape}", (x, cu_seqlens), static), "float16", Build.STRICT)


@settings(drawn)
@given(blocks=st.integers(1, 5), longest=st.integers(1, 600), seed=seeds)
def test_rope_takes_any_positions_and_reads_the_last_row(blocks: int, longest: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    heads, dim, tokens = 2, 64, 8 * blocks
    angles = np.arange(longest)[:, None] * 1000.0 ** -(np.arange(dim // 2) / (dim // 2))
    positions = random.integers(0, longest, tokens).astype(np.int32)
    positions[-1] = longest - 1
    arrays = (
        random.normal(size=(tokens, 3 * heads * dim)),
        positions,
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
    )
    prove(KERNELS["rope"], Case(f"{tokens} tokens", arrays, {"heads": heads}), "float16", Build.STRICT)

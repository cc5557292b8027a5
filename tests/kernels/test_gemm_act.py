"""The index maps of the fused matrix product, in NumPy: what is packed, multiplied and stored lands where it should."""

import math

import mlx.core as mx
import numpy as np
import pytest
from fletcher_kernels import gemm_act
from fletcher_kernels.gemm_act import Schedule, dense_act, packed_index, reference, schedule

SIZES = ((1536, 384, False), (6144, 768, True), (512, 128, False), (3072, 768, False), (4096, 1024, False))


def _swizzle(address):
    """128-byte swizzle of a byte address, as the tensor cores and the copy engine apply it."""
    return address ^ ((address >> 7 & 7) << 4)


def _wgmma_rows(memory, start, rows):
    """What wgmma reads through a descriptor at byte `start`: (rows, 16), 8-row groups 1024 bytes apart."""
    row, k = np.ogrid[:rows, :16]
    address = _swizzle(start + row // 8 * 1024 + row % 8 * 128 + k * 2)
    return memory[address // 2]


@pytest.mark.parametrize(("n", "k", "gated"), SIZES)
def test_a_packed_weight_reads_back_through_wgmma_s_descriptors(n, k, gated):
    block = schedule(n, k, gated).block_columns
    weight = np.arange(n * k).reshape(n, k)
    packed = weight.reshape(-1, 8)[packed_index(n, k, gated, block)].reshape(-1)
    rows = gemm_act._order(n, gated)
    assert sorted(rows) == list(range(n))
    for tile in (0, n // block - 1):
        for step in range(k // 64):
            memory = packed[(tile * (k // 64) + step) * block * 64 :][: block * 64]
            for sixteenth in range(4):
                expected = weight[rows[tile * block :][:block], step * 64 + 16 * sixteenth :][:, :16]
                np.testing.assert_array_equal(_wgmma_rows(memory, 32 * sixteenth, block), expected)


def test_a_tile_of_a_reads_back_for_both_consumers():
    tile = np.arange(128 * 64).reshape(128, 64)
    memory = np.empty(128 * 64, np.int64)
    row, column = np.ogrid[:128, :64]
    memory[_swizzle(row * 128 + column * 2) // 2] = tile  # as the copy engine writes it
    for consumer in range(2):
        for sixteenth in range(4):
            got = _wgmma_rows(memory, consumer * 64 * 128 + 32 * sixteenth, 64)
            np.testing.assert_array_equal(got, tile[64 * consumer :][:64, 16 * sixteenth :][:, :16])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("block", "columns"), [(128, 64), (192, 64), (256, 64), (256, 128), (192, 96), (128, 32)])
def test_every_output_leaves_through_its_own_piece(gated, block, columns):
    width = block // 2 if gated else block
    if width % columns:
        pytest.skip("not whole passes")
    product = np.arange(16 * block).reshape(16, block)  # of one warp: rows x packed columns
    stride = columns * 2 + 16
    out = np.full((16, width), -1)
    for start in range(0, width, columns):
        staging = np.full(16 * stride // 2, -1)
        for b in range(columns // 16):
            for matrix in range(4):
                o, r = 2 * (start // 16 + b) + matrix // 2, matrix % 2
                for lane in range(32):
                    first = 8 * o + 2 * r if gated else 4 * o + 2 * r
                    source = 8 * matrix + lane // 4  # the lane that gives this row's address
                    address = (source & 15) * stride + (source >> 4) * 16 + 32 * b
                    assert address % 16 == 0
                    for half in range(2):
                        i = first + half
                        row, column = lane // 4 + 8 * (i >> 1 & 1), 8 * (i >> 2) + 2 * (lane & 3) + (i & 1)
                        if gated:  # the up of the same output stands in the block after
                            j = i + 4
                            up = 8 * (j >> 2) + 2 * (lane & 3) + (j & 1)
                            assert (column % 16, up) == (column % 8, column + 8)
                        staging[address // 2 + 2 * (lane % 4) + half] = product[row, column]
        pieces = columns // 8
        for i in range(pieces // 2):
            for lane in range(32):
                piece = i * 32 + lane
                row, column = piece // pieces, piece % pieces
                at = (row * stride + column * 16) // 2
                out[row, start + column * 8 :][:8] = staging[at : at + 8]
    order = gemm_act._order(block, gated)
    of_output = [int(np.flatnonzero(order == c)[0]) for c in range(width)]
    np.testing.assert_array_equal(out, product[:, of_output])


def test_gelu_s_logit_is_close_everywhere():
    x = np.linspace(-30.0, 30.0, 60001).astype(np.float32)
    square = x * x
    p = np.zeros_like(x)
    for c in reversed(gemm_act.GELU_LOGIT):
        p = p * square + np.float32(c * -np.log2(np.e))
    with np.errstate(over="ignore"):
        got = x / (np.float32(1.0) + np.exp2(x * p))
    exact = np.array([v * 0.5 * math.erfc(-v * 0.5**0.5) for v in x.astype(np.float64)])
    assert np.abs(got - exact).max() < 4e-6


@pytest.mark.parametrize("activation", gemm_act.ACTIVATIONS)
def test_plain_operations_and_the_reference_agree(activation):
    random = np.random.default_rng(1)
    a, weight = random.normal(size=(17, 64)).astype(np.float32), random.normal(size=(32, 64)).astype(np.float32) / 8
    bias = None if activation == "swiglu" else random.normal(size=32).astype(np.float32)
    got = dense_act(mx.array(a), mx.array(weight), None if bias is None else mx.array(bias), activation=activation)
    np.testing.assert_allclose(np.array(got), reference(a, weight, bias, activation), atol=2e-5)


@pytest.mark.parametrize(("n", "k", "gated"), SIZES)
def test_a_schedule_fits_a_block(n, k, gated):
    assert schedule(n, k, gated).shared_memory(k) <= gemm_act.SHARED_MEMORY


def test_blocks_share_a_weight_only_where_mlx_makes_no_graphs(monkeypatch):
    """An update of a CUDA graph, of which MLX makes many, loses the cluster."""
    for singly, cluster in ((True, 2), (False, 1)):
        monkeypatch.setattr(gemm_act, "launches_singly", lambda singly=singly: singly)
        assert schedule(6144, 768, True).cluster == cluster
        assert schedule(1536, 384, False).cluster == 1


@pytest.mark.parametrize(("rows", "slabs", "grid"), [(1, 8, 132), (64, 8, 132), (4113, 12, 132), (32768, 2, 132)])
def test_in_lockstep_every_unit_is_done_once(rows, slabs, grid):
    tiles, stride, done = -(-rows // 64), grid // slabs, []
    for block in range(grid):  # as in Share
        at, end = block // slabs, tiles if block // slabs < stride else 0
        count = -(-(end - at) // stride) if at < end else 0
        done += [(block % slabs, at + i * stride) for i in range(count)]
    assert sorted(done) == [(slab, tile) for slab in range(slabs) for tile in range(tiles)]


def test_sizes_outside_are_refused():
    assert schedule(1000, 384, False) is None
    assert schedule(1536, 100, False) is None
    assert Schedule(True, 192, 4).threads == 384

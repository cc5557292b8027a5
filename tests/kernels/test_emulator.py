"""What the emulator computes: the text, the grid, SIMD operations, numbers, each with every compiler."""

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="the Metal text comes from MLX, which is not installed")

from emulator import Build, EmulatorError, capture, compile_text, unavailable
from emulator.capture import Output
from emulator.probe import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    HEADER,
    INT32,
    MLX_TYPES,
    ONE_SIMDGROUP,
    TWO_SIMDGROUPS,
    UINT32,
    builds,
    compiled,
    element_types,
    numbers,
)

# The text


def test_an_input_of_fewer_than_eight_elements_is_constant_in_the_text() -> None:
    inputs = {"few": numbers(7), "many": numbers(8), "one": np.float32(1).reshape(())}
    text = capture("probe", HEADER, "y[0] = few[0] + many[0] + one;", inputs, {"y": ((1,), FLOAT32)})
    assert "const constant float* few" in text
    assert "const device float* many" in text
    assert "const constant float& one" in text


def test_a_text_is_not_run_with_arrays_that_mlx_would_bind_differently() -> None:
    outputs = {"y": ((1,), FLOAT32)}
    kernel = compiled("y[0] = x[0];", {"x": numbers(7)}, outputs)
    with pytest.raises(EmulatorError, match=r"'x' with shape .8,. is device memory in MLX.* constant: capture"):
        kernel.run({"x": numbers(8)}, outputs, **ONE_SIMDGROUP)
    with pytest.raises(EmulatorError, match="'x' is float32 in the text and float16 here"):
        kernel.run({"x": numbers(7, FLOAT16)}, outputs, **ONE_SIMDGROUP)


def test_a_shape_that_the_body_mentions_is_bound() -> None:
    inputs, outputs = {"x": numbers(12).reshape(3, 4)}, {"y": ((2,), INT32)}
    kernel = compiled("y[0] = x_shape[0]; y[1] = x_shape[1];", inputs, outputs)
    assert kernel.run(inputs, outputs, **ONE_SIMDGROUP)[0].tolist() == [3, 4]


@builds
def test_a_threadgroup_array_may_stand_behind_a_macro_and_in_comments(build: Build) -> None:
    header = HEADER + "#define SHARED(T, name, n) threadgroup T name[n]\n"
    source = """
    // In this threadgroup float i = 3; and threadgroup
    float own[2] = {1.0f, 2.0f};  /* threadgroup float own[2]; */
    SHARED(float, first, 32); SHARED(float, second, 32);
    threadgroup float last;
    uint i = thread_position_in_threadgroup.x;
    first[i] = x[i]; second[i] = own[1]; if (i == 31u) last = own[0];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = first[31u - i] * second[31u - i] + last;
    """
    inputs, outputs = {"x": numbers(32)}, {"y": ((32,), FLOAT32)}
    kernel = compiled(source, inputs, outputs, build, header=header)
    assert kernel.run(inputs, outputs, **ONE_SIMDGROUP)[0].tolist() == (inputs["x"][::-1] * 2 + 1).tolist()


# The thread and its grid


@builds
def test_a_ragged_last_threadgroup_has_the_threads_that_are_left(build: Build) -> None:
    outputs: dict[str, Output] = {"index": ((50,), UINT32), "sum": ((50,), FLOAT32)}
    kernel = compiled(
        """
        uint i = thread_position_in_grid.x;
        uint group = threadgroup_position_in_grid.x, threads = threads_per_threadgroup.x;
        index[i] = group * 1000u + threads * 10u + simdgroup_index_in_threadgroup;
        sum[i] = simd_sum(1.0f);
        """,
        {},
        outputs,
        build,
    )
    index, total = kernel.run({}, outputs, grid=(50, 1, 1), threadgroup=(40, 1, 1))
    assert index.tolist() == [400] * 32 + [401] * 8 + [1100] * 10
    assert total.tolist() == [32] * 32 + [8] * 8 + [10] * 10


def test_a_threadgroup_of_more_than_1024_threads_is_refused() -> None:
    outputs = {"y": ((2048,), FLOAT32)}
    kernel = compiled("y[thread_position_in_grid.x] = 0.0f;", {}, outputs)
    with pytest.raises(EmulatorError, match="Metal allows 1024 threads"):
        kernel.run({}, outputs, grid=(2048, 1, 1), threadgroup=(2048, 1, 1))


def test_two_workers_compute_the_same_bits_as_one() -> None:
    inputs, outputs = {"x": numbers(32 * 50)}, {"y": ((50,), FLOAT32)}
    kernel = compiled("y[threadgroup_position_in_grid.x] = simd_sum(x[thread_position_in_grid.x]);", inputs, outputs)
    launch = {"grid": (32 * 50, 1, 1), "threadgroup": (32, 1, 1)}
    one, two = (kernel.run(inputs, outputs, **launch, workers=workers)[0] for workers in (1, 2))
    assert one.tobytes() == two.tobytes()


# SIMD operations


@builds
def test_reductions_and_scans_are_those_of_numpy(build: Build) -> None:
    inputs, outputs = {"x": numbers(32)}, {"y": ((5, 32), FLOAT32)}
    operations = ("sum", "max", "min", "prefix_inclusive_sum", "prefix_exclusive_sum")
    body = "".join(f"y[{row}u * 32u + i] = simd_{name}(x[i]);" for row, name in enumerate(operations))
    kernel = compiled(f"uint i = thread_index_in_simdgroup; {body}", inputs, outputs, build)
    (y,) = kernel.run(inputs, outputs, **ONE_SIMDGROUP)
    x = inputs["x"].astype(np.float64)
    for row, expected in enumerate((x.sum(), x.max(), x.min(), np.cumsum(x), np.cumsum(x) - x)):
        np.testing.assert_allclose(y[row], np.broadcast_to(expected, 32), atol=1e-5, err_msg=operations[row])


@builds
def test_shuffles_move_values_between_lanes(build: Build) -> None:
    inputs, outputs = {"x": numbers(32, FLOAT16)}, {"y": ((6, 32), FLOAT16)}
    calls = ("shuffle(v, 31 - i)", "shuffle_xor(v, 5)", "shuffle_up(v, 3)", "shuffle_down(v, 3)", "broadcast(v, 7)")
    body = "".join(f"y[{row}u * 32u + i] = simd_{call};" for row, call in enumerate((*calls, "broadcast_first(v)")))
    kernel = compiled(f"ushort i = thread_index_in_simdgroup; half v = x[i]; {body}", inputs, outputs, build)
    (y,) = kernel.run(inputs, outputs, **ONE_SIMDGROUP)
    x, lanes = inputs["x"], np.arange(32)
    sources = (31 - lanes, lanes ^ 5, np.where(lanes < 3, lanes, lanes - 3), np.where(lanes > 28, lanes, lanes + 3))
    for row, source in enumerate((*sources, lanes * 0 + 7, lanes * 0)):
        assert y[row].tolist() == x[source].tolist(), row


@builds
@element_types
def test_a_matrix_is_multiplied_as_numpy_does_it(build: Build, dtype: np.dtype) -> None:
    inputs = {"a": numbers(8 * 12, dtype), "b": numbers(8 * 9, dtype), "c": numbers(64)}
    outputs: dict[str, Output] = {"y": ((8, 8), FLOAT32), "z": ((8, 8), FLOAT32)}
    kernel = compiled(
        """
        threadgroup float part[64];
        simdgroup_matrix<T, 8, 8> left, right, right_t;
        simdgroup_matrix<float, 8, 8> sum, product;
        simdgroup_load(left, a, 12);
        simdgroup_load(right, b, 9);
        simdgroup_load(right_t, b, 9, ulong2(0, 0), true);
        simdgroup_load(sum, c);
        simdgroup_multiply_accumulate(sum, left, right, sum);
        simdgroup_multiply(product, left, right_t);
        simdgroup_store(sum, y);
        simdgroup_store(product, part);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = thread_index_in_simdgroup; i < 64u; i += 32u) z[i] = part[i];
        """,
        inputs,
        outputs,
        build,
        [("T", MLX_TYPES[dtype])],
    )
    y, z = kernel.run(inputs, outputs, **ONE_SIMDGROUP)
    a, b = inputs["a"].astype(np.float64).reshape(8, 12)[:, :8], inputs["b"].astype(np.float64)
    b = np.array([b[9 * row : 9 * row + 8] for row in range(8)])
    np.testing.assert_allclose(y, a @ b + inputs["c"].reshape(8, 8), atol=1e-5)
    np.testing.assert_allclose(z, a @ b.T, atol=1e-5)


@builds
def test_a_lane_holds_two_neighbours_of_a_row_in_apples_layout(build: Build) -> None:
    outputs: dict[str, Output] = {"y": ((8, 8), FLOAT32)}
    kernel = compiled(
        """
        simdgroup_matrix<float, 8, 8> lanes;
        for (int i = 0; i < 2; i++) lanes.thread_elements()[i] = float(2u * thread_index_in_simdgroup + uint(i));
        simdgroup_store(lanes, y);
        """,
        {},
        outputs,
        build,
    )
    (y,) = kernel.run({}, outputs, **ONE_SIMDGROUP)
    for lane in range(32):
        quad = lane // 4
        row, column = (quad & 4) + lane // 2 % 4, (quad & 2) * 2 + lane % 2 * 2
        assert y[row, column : column + 2].tolist() == [2 * lane, 2 * lane + 1]


def test_a_matrix_made_of_one_number_is_diagonal_and_a_filled_one_is_full() -> None:
    outputs: dict[str, Output] = {"y": ((8, 8), FLOAT32), "z": ((8, 8), FLOAT32), "none": ((8, 8), FLOAT32)}
    kernel = compiled(
        """
        simdgroup_store(simdgroup_matrix<float, 8, 8>(2.0f), y);
        simdgroup_store(make_filled_simdgroup_matrix<float, 8, 8>(2.0f), z);
        simdgroup_store(simdgroup_matrix<float, 8, 8>(), none);
        """,
        {},
        outputs,
    )
    y, z, none = kernel.run({}, outputs, **ONE_SIMDGROUP)
    assert y.tolist() == (2 * np.eye(8)).tolist()
    assert (z == 2).all()
    assert np.isnan(none).all()


@builds
def test_atomics_add_up_over_all_threadgroups(build: Build) -> None:
    outputs: dict[str, Output] = {"y": ((1,), UINT32)}
    source = "atomic_fetch_add_explicit((device atomic_uint*)y, thread_position_in_grid.x + 1u, memory_order_relaxed);"
    kernel = compiled(source, {}, outputs, build)
    (y,) = kernel.run({}, outputs, grid=(1000, 1, 1), threadgroup=(64, 1, 1), workers=2)
    assert y[0] == 1000 * 1001 // 2 - 1  # an output starts as 0xffffffff


# Numbers


@builds
def test_half_rounds_after_every_operation(build: Build) -> None:
    inputs, outputs = {"x": np.array([2048, 1, 1, -2048, 0, 0, 0, 0], np.float16)}, {"y": ((1,), FLOAT16)}
    kernel = compiled("y[0] = x[0] + x[1] + x[2] + x[3];", inputs, outputs, build)
    assert kernel.run(inputs, outputs, **ONE_SIMDGROUP)[0][0] == 0  # 2048 + 1 is 2048 in half; in float it would be 2


@builds
def test_bfloat_rounds_to_nearest_even_after_every_operation(build: Build) -> None:
    x = np.concatenate([np.array([256, 1, 1, -256]), numbers(60)]).astype(BFLOAT16)
    inputs: dict[str, np.ndarray] = {"x": x, "f": numbers(64)}
    outputs: dict[str, Output] = {"y": ((1,), BFLOAT16), "z": ((64,), BFLOAT16)}
    kernel = compiled(
        """
        uint i = thread_position_in_grid.x;
        z[i] = bfloat16_t(f[i]);
        if (i == 0u) y[0] = x[0] + x[1] + x[2] + x[3];
        """,
        inputs,
        outputs,
        build,
    )
    y, z = kernel.run(inputs, outputs, **TWO_SIMDGROUPS)
    assert y[0] == 0
    assert z.tobytes() == inputs["f"].astype(BFLOAT16).tobytes()


@builds
@element_types
def test_four_elements_are_loaded_and_stored_at_once(build: Build, dtype: np.dtype) -> None:
    inputs, outputs = {"x": numbers(128, dtype)}, {"y": ((128,), dtype)}
    kernel = compiled(
        """
        uint i = thread_position_in_grid.x * 4u;
        float4 v = float4(*(const device vec<T, 4>*)(x + i)) * 2.0f + float4(1.0f, float2(2.0f), 3.0f);
        *(device vec<T, 4>*)(y + i) = vec<T, 4>(T(v.x), T(v.y), T(v.z), T(v.w));
        """,
        inputs,
        outputs,
        build,
        [("T", MLX_TYPES[dtype])],
    )
    (y,) = kernel.run(inputs, outputs, **ONE_SIMDGROUP)
    x = inputs["x"].astype(np.float32)
    assert y.tobytes() == (x * 2 + np.tile(np.float32([1, 2, 2, 3]), 32)).astype(dtype).tobytes()


@pytest.mark.parametrize("build", [Build.STRICT, Build.ERASED], ids=lambda build: build.value)
def test_swizzles_work_where_clang_compiles(build: Build) -> None:
    inputs, outputs = {"x": numbers(8)}, {"y": ((4,), FLOAT32)}
    kernel = compiled(
        "*(device float4*)y = float4(((const device float4*)x)[0].wz, x[4], x[5]);", inputs, outputs, build
    )
    assert kernel.run(inputs, outputs, **ONE_SIMDGROUP)[0].tolist() == inputs["x"][[3, 2, 4, 5]].tolist()


# The toolchain


def test_a_build_without_its_compiler_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.toolchain._clang", lambda: None)
    assert "ziglang" in (unavailable(Build.STRICT) or "")
    with pytest.raises(EmulatorError, match="no clang"):
        compile_text(capture("probe", HEADER, "y[0] = 1.0f;", {}, {"y": ((1,), FLOAT32)}), Build.STRICT)

"""Kernels that Metal would refuse to compile, and threads that do not meet: the emulator finds them."""

from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="the Metal text comes from MLX, which is not installed")

from emulator import Build, CompiledKernel, CompileError, EmulatorError, Schedule, capture
from emulator.capture import Output
from emulator.probe import (
    FLOAT16,
    FLOAT32,
    HEADER,
    ONE_SIMDGROUP,
    TWO_SIMDGROUPS,
    builds,
    compiled,
    numbers,
)

# What Metal's compiler would refuse


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("float s = x[0]; y[0] = s * 1.1;", "double"),
        ("if (x[0] > 1e-12) y[0] = 1.0f;", "double"),
        ("double s = 1.0f; y[0] = float(s);", "double"),
        ("half s = x[0] * 2.0f; y[0] = float(s);", "loses floating-point precision"),
        ("bfloat s = x[0]; y[0] = float(s);", "loses floating-point precision|not convertible|cannot"),
        ("y[0] = first(few);", "no matching function"),
        ("threadgroup float part[32]; device float* p = part; y[0] = p[0];", "cannot initialize.*device float"),
        ("threadgroup float part[32]; part[0] = x[0]; y[0] = first(part);", "no matching function"),
        (
            "simdgroup_matrix<float, 8, 8> m; simdgroup_load(m, (const device half*)x); simdgroup_store(m, y);",
            "same type",
        ),
        ("((device float*)x)[0] = y[0]; x[0] = 1.0f;", "read-only|const"),
    ],
)
def test_the_strict_build_refuses_what_metal_refuses(source: str, words: str) -> None:
    header = HEADER + "inline float first(const device float* p) { return p[0]; }\n"
    with pytest.raises(CompileError, match=words):
        compiled(source, {"x": numbers(64), "few": numbers(3)}, {"y": ((64,), FLOAT32)}, header=header)


@builds
def test_threadgroup_memory_has_no_initialiser(build: Build) -> None:
    with pytest.raises(EmulatorError, match="no initialiser"):
        compiled("threadgroup float part[2] = {0}; y[0] = part[0];", {}, {"y": ((1,), FLOAT32)}, build)


@builds
def test_a_compile_error_names_the_line_of_the_text(build: Build) -> None:
    source = "\nundeclared = 1;"
    text = capture("probe", HEADER, source, {}, {"y": ((1,), FLOAT32)})
    line = next(i for i, words in enumerate(text.splitlines(), 1) if "undeclared" in words)
    with pytest.raises(CompileError, match=rf"kernel.metal:{line}:"):
        compiled(source, {}, {"y": ((1,), FLOAT32)}, build)


# Threads that do not meet

EXCHANGE = """
threadgroup float part[64];
uint i = thread_position_in_threadgroup.x;
part[i] = x[i];
{meet}
y[i] = part[i ^ {distance}u];
"""


def outcomes(kernel: CompiledKernel, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, Output]) -> set[bytes]:
    return {kernel.run(inputs, outputs, **TWO_SIMDGROUPS, schedule=schedule)[0].tobytes() for schedule in Schedule}


@builds
@pytest.mark.parametrize(
    ("barrier", "distance"), [("threadgroup_barrier", 32), ("simdgroup_barrier", 1)], ids=["threadgroup", "simdgroup"]
)
def test_the_schedules_disagree_where_a_barrier_is_missing(build: Build, barrier: str, distance: int) -> None:
    inputs, outputs = {"x": numbers(64)}, {"y": ((64,), FLOAT32)}
    meet = f"{barrier}(mem_flags::mem_threadgroup);"
    sound = compiled(EXCHANGE.format(meet=meet, distance=distance), inputs, outputs, build)
    broken = compiled(EXCHANGE.format(meet="", distance=distance), inputs, outputs, build)
    assert outcomes(sound, inputs, outputs) == {inputs["x"][np.arange(64) ^ distance].tobytes()}
    assert len(outcomes(broken, inputs, outputs)) > 1


@builds
def test_scratch_that_is_written_again_too_early_is_seen(build: Build) -> None:
    source = """
    threadgroup float part[2];
    uint i = thread_position_in_threadgroup.x, s = simdgroup_index_in_threadgroup;
    part[s] = simd_max(x[i]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float top = max(part[0], part[1]);
    {barrier}
    part[s] = simd_sum(x[i] - top);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = part[0] + part[1];
    """
    inputs, outputs = {"x": numbers(64)}, {"y": ((64,), FLOAT32)}
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    assert len(outcomes(compiled(source.format(barrier=barrier), inputs, outputs, build), inputs, outputs)) == 1
    assert len(outcomes(compiled(source.format(barrier=""), inputs, outputs, build), inputs, outputs)) > 1


@builds
@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "if (i < 16u) v = simd_sum(v);",
            r"simdgroup 0 diverges: 16 of 32 lanes are in simd_sum at kernel.metal:\d+; 16 have returned",
        ),
        (
            "if (i < 16u) v = simd_sum(v); else v = simd_max(v);",
            r"16 of 32 lanes are in simd_sum at kernel.metal:\d+; lane 16 waits in simd_max at kernel.metal:\d+",
        ),
        ("if (i == 63u) return; v = simd_sum(v);", "simdgroup 1 diverges: 31 of 32 lanes are in simd_sum"),
        (
            "if (i < 32u) threadgroup_barrier(mem_flags::mem_threadgroup);",
            r"32 of 64 threads are in threadgroup_barrier at kernel.metal:\d+; 32 have returned",
        ),
        (
            "if (i < 32u) threadgroup_barrier(mem_flags::mem_none);\nelse threadgroup_barrier(mem_flags::mem_none);",
            "wait at two barriers: kernel.metal",
        ),
        (
            "if (i == 3u) threadgroup_barrier(mem_flags::mem_none); else v = simd_sum(v);",
            "lane 3 waits in threadgroup_barrier",
        ),
    ],
    ids=["half a simdgroup", "two operations", "returned lane", "half a threadgroup", "two barriers", "mixed"],
)
def test_divergence_is_reported_with_its_line(build: Build, source: str, words: str) -> None:
    outputs: dict[str, Output] = {"y": ((64,), FLOAT32)}
    kernel = compiled(
        f"uint i = thread_position_in_threadgroup.x; float v = float(i);\n{source}\ny[i] = v;", {}, outputs, build
    )
    for schedule in Schedule:
        with pytest.raises(EmulatorError, match=words) as raised:
            kernel.run({}, outputs, **TWO_SIMDGROUPS, schedule=schedule)
        assert source.splitlines()[0] in str(raised.value), "the line is quoted"


def test_a_matrix_needs_a_whole_simdgroup() -> None:
    outputs: dict[str, Output] = {"y": ((64,), FLOAT32)}
    kernel = compiled("simdgroup_store(simdgroup_matrix<float, 8, 8>(1.0f), y);", {}, outputs)
    with pytest.raises(EmulatorError, match="simdgroup_store in a simdgroup of fewer than 32 lanes"):
        kernel.run({}, outputs, grid=(20, 1, 1), threadgroup=(20, 1, 1))


def test_a_half_becomes_a_float_by_itself_as_in_metal() -> None:
    inputs, outputs = {"x": numbers(64, FLOAT16)}, {"y": ((1,), FLOAT32)}
    kernel = compiled("y[0] = x[0] * 2.0f + x[1];", inputs, outputs)
    expected = inputs["x"].astype(np.float32)[0] * 2 + inputs["x"].astype(np.float32)[1]
    assert kernel.run(inputs, outputs, **ONE_SIMDGROUP)[0][0] == expected

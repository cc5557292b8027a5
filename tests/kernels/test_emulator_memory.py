"""Accesses outside of what a kernel may touch: the emulator names the buffer, the byte and the line."""

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="the Metal text comes from MLX, which is not installed")

from emulator import Build, EmulatorError, Schedule
from emulator.capture import Output
from emulator.probe import (
    FLOAT16,
    FLOAT32,
    INT32,
    ONE_SIMDGROUP,
    TWO_SIMDGROUPS,
    builds,
    compiled,
    numbers,
)

# Memory


@builds
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("y[i] = x[i + 1u];", r"read of buffer 'x' past the end: byte 256 of 256, at kernel.metal:\d+\n"),
        ("y[i + 1u] = x[i];", "(write to|access to) buffer 'y' past the end: byte 256 of 256"),
        ("((device float*)x)[i] = 1.0f;", "buffer 'x', which is read-only, at byte"),
        ("y[i] = ((const device float*)nullptr)[i];", "no buffer of the kernel|null pointer"),
    ],
    ids=["read", "write", "input", "null"],
)
def test_an_access_outside_of_a_buffer_is_an_error_that_names_it(build: Build, source: str, words: str) -> None:
    inputs, outputs = {"x": numbers(64)}, {"y": ((64,), FLOAT32)}
    kernel = compiled(f"uint i = thread_position_in_grid.x;\n{source}", inputs, outputs, build)
    with pytest.raises(EmulatorError, match=words):
        kernel.run(inputs, outputs, **TWO_SIMDGROUPS)


@builds
def test_an_access_before_a_buffer_faults_in_the_reverse_schedule(build: Build) -> None:
    inputs, outputs = {"x": numbers(64)}, {"y": ((64,), FLOAT32)}
    kernel = compiled("int i = int(thread_position_in_grid.x); y[i] = x[i - 1];", inputs, outputs, build)
    with pytest.raises(EmulatorError, match="buffer 'x' before the start: byte -4 of 256"):
        kernel.run(inputs, outputs, **TWO_SIMDGROUPS, schedule=Schedule.REVERSE)


@builds
def test_a_write_into_the_last_bytes_before_the_guard_page_is_seen(build: Build) -> None:
    outputs: dict[str, Output] = {"y": ((3,), FLOAT32)}  # 12 bytes: 4 are left of the 16 that a buffer is aligned to
    kernel = compiled("y[thread_position_in_grid.x] = 1.0f;", {}, outputs, build)
    with pytest.raises(EmulatorError, match="a write outside of buffer 'y'"):
        kernel.run({}, outputs, grid=(4, 1, 1), threadgroup=(4, 1, 1))


@builds
def test_an_access_outside_of_a_threadgroup_array_is_an_error(build: Build) -> None:
    outputs: dict[str, Output] = {"y": ((64,), FLOAT32)}
    kernel = compiled(
        """
        threadgroup float other[8], part[64];
        uint i = thread_position_in_threadgroup.x;
        threadgroup float* p = part;
        p[i + 4u] = 1.0f; other[i % 8u] = 2.0f;
        y[i] = p[i];
        """,
        {},
        outputs,
        build,
    )
    with pytest.raises(EmulatorError, match="threadgroup array 'part' past the end: byte 256 of 256"):
        kernel.run({}, outputs, **TWO_SIMDGROUPS)


@builds
def test_threadgroup_memory_ends_at_32_kilobytes(build: Build) -> None:
    outputs: dict[str, Output] = {"y": ((1,), FLOAT32)}
    source = (
        "threadgroup float a[4096]; threadgroup half4 b[N]; a[0] = 1.0f; b[0].x = 1.0h; y[0] = a[0] + float(b[0].x);"
    )
    fits, spills = (compiled(source, {}, outputs, build, [("N", count)]) for count in (2048, 2049))
    assert fits.run({}, outputs, **ONE_SIMDGROUP)[0][0] == 2
    with pytest.raises(EmulatorError, match="threadgroup memory: 32776 bytes wanted with 'b', 32768 allowed"):
        spills.run({}, outputs, **ONE_SIMDGROUP)


def test_a_threadgroup_array_is_aligned_as_it_is_declared() -> None:
    inputs, outputs = {"x": numbers(8, FLOAT16)}, {"y": ((8,), FLOAT16)}
    source = "threadgroup half part[8]; *(threadgroup uint4*)part = *(const device uint4*)x; y[0] = part[7];"
    bare, aligned = (compiled(text, inputs, outputs, Build.ERASED) for text in (source, f"alignas(16) {source}"))
    for schedule in Schedule:
        assert aligned.run(inputs, outputs, **ONE_SIMDGROUP, schedule=schedule)[0][0] == inputs["x"][7]
    with pytest.raises(EmulatorError, match=r"kernel.metal:\d+: a misaligned access"):
        bare.run(inputs, outputs, **ONE_SIMDGROUP, schedule=Schedule.RANDOM)


@builds
def test_what_nobody_wrote_is_not_a_number(build: Build) -> None:
    outputs: dict[str, Output] = {"y": ((64,), FLOAT16), "z": ((32,), FLOAT32), "n": ((2,), INT32)}
    kernel = compiled(
        "threadgroup float part[32]; uint i = thread_position_in_grid.x; y[i] = half(1.0f); z[i] = part[i]; n[0] = 1;",
        {},
        outputs,
        build,
    )
    y, z, n = kernel.run({}, outputs, **ONE_SIMDGROUP)
    assert np.isnan(y).tolist() == [False] * 32 + [True] * 32
    assert np.isnan(z).all()
    assert n.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("y[0] = float4(*(const device half4*)(x + 1)).x;", r"kernel.metal:\d+: a misaligned access"),
        ("float a[4] = {0.0f, 1.0f, 2.0f, 3.0f}; y[0] = a[n[0]];", r"kernel.metal:\d+: an index outside of its array"),
        ("y[0] = float(1 << (n[0] + 30));", "a shift by more than the type's width"),
        ("y[0] = float(1 / (n[0] - 5));", "an integer division by zero"),
        ("y[0] = float(int(1e20f * float(n[0])));", "a float that does not fit"),
    ],
    ids=["misaligned", "index", "shift", "division", "conversion"],
)
def test_the_erased_build_finds_undefined_behaviour(source: str, words: str) -> None:
    inputs = {"x": numbers(64, FLOAT16), "n": np.array([5], np.int32)}
    outputs: dict[str, Output] = {"y": ((1,), FLOAT32)}
    kernel = compiled(source, inputs, outputs, Build.ERASED)
    with pytest.raises(EmulatorError, match=words):
        kernel.run(inputs, outputs, **ONE_SIMDGROUP)


@builds
def test_a_thread_that_needs_too_much_memory_is_an_error(build: Build) -> None:
    inputs, outputs = {"n": np.array([5], np.int32)}, {"y": ((1,), FLOAT32)}
    kernel = compiled(
        """
        float big[65536];
        for (int i = 0; i < 65536; i++) big[i] = float(n[0] * i);
        y[0] = big[n[0]] + big[n[0] * n[0]];
        """,
        inputs,
        outputs,
        build,
    )
    with pytest.raises(EmulatorError, match="the end of its stack"):
        kernel.run(inputs, outputs, grid=(2, 1, 1), threadgroup=(2, 1, 1))


@pytest.mark.parametrize("build", [Build.STRICT, Build.GCC], ids=lambda build: build.value)
def test_an_integer_division_by_zero_does_not_end_the_process(build: Build) -> None:
    inputs, outputs = {"n": np.array([0], np.int32)}, {"y": ((1,), INT32)}
    kernel = compiled("y[0] = 7 / n[0];", inputs, outputs, build)
    with pytest.raises(EmulatorError, match="an integer division by zero"):
        kernel.run(inputs, outputs, **ONE_SIMDGROUP)
    assert kernel.run({"n": np.array([2], np.int32)}, outputs, **ONE_SIMDGROUP)[0][0] == 3

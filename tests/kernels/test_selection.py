"""What `KernelSet` says of kernels that do not run; MLX's CPU backend stands for a GPU."""

import logging
from typing import Any

import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed")

import fletcher_kernels.selection
import mlx.core as mx
import numpy as np
from fletcher_kernels.kernel import Kernel
from fletcher_kernels.selection import KernelSet, switched_off


def gate_up(tokens: int, columns: int) -> mx.array:
    return mx.array(np.random.default_rng(0).normal(size=(tokens, 2 * columns)).astype(np.float32))


def silu(x: mx.array) -> np.ndarray:
    gate, up = np.split(np.array(x).astype(np.float64), 2, axis=-1)
    return gate / (1.0 + np.exp(-gate)) * up


def test_sizes_that_a_kernel_does_not_cover_are_told_once_a_variant(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launched: list[int] = []

    def launch(kernel: Kernel, arrays: Any, static: Any, _: Any) -> list[mx.array]:
        launched.append(arrays[0].shape[0])
        return kernel.fallback(arrays, static)

    monkeypatch.setattr(fletcher_kernels.selection, "launch", launch)
    kernels = KernelSet("metal")
    with caplog.at_level(logging.INFO, "fletcher_kernels"), mx.stream(mx.cpu):
        for tokens, columns in ((3, 20), (5, 20), (3, 12), (3, 20)):
            x = gate_up(tokens, columns)
            (got,) = kernels.run("swiglu", [x])
            np.testing.assert_allclose(np.array(got), silu(x), atol=1e-5)
        assert kernels.uncovered == {"swiglu"}
        assert launched == []
        kernels.run("swiglu", [gate_up(256, 8)])  # the kernel stays for what it covers
    assert launched == [256]
    assert kernels.replaced == {}
    assert caplog.messages == [
        f"GPU kernel swiglu does not cover these sizes (T=float32, F={columns}, THREADS=256): "
        "plain MLX operations run instead"
        for columns in (20, 12)
    ]
    assert {record.levelname for record in caplog.records} == {"INFO"}


@pytest.mark.parametrize(("dialect", "off"), [(None, ()), ("metal", ("swiglu",))])
def test_where_no_kernel_would_run_there_is_nothing_to_tell(
    dialect: Any, off: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    kernels = KernelSet(dialect, off)
    with caplog.at_level(logging.INFO, "fletcher_kernels"), mx.stream(mx.cpu):
        kernels.run("swiglu", [gate_up(3, 20)])
    assert kernels.uncovered == set()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", []),
        (" , ,", []),
        ("rope", ["rope"]),
        ("rope, pool", ["rope", "pool"]),
        (" rope ,,pool\n", ["rope", "pool"]),
    ],
)
def test_names_to_leave_out_may_have_spaces_around_them(
    monkeypatch: pytest.MonkeyPatch, value: str, names: list[str]
) -> None:
    monkeypatch.setenv("FLETCHER_KERNELS_OFF", value)
    assert switched_off() == names

"""Kernels that are wrong or do not run are replaced while the engine works; here MLX's CPU backend stands for a GPU."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fletcher_kernels.selection
import mlx.core as mx
import numpy as np
import pytest
from fletcher_kernels.kernel import Kernel
from fletcher_kernels.selection import KernelSet

from fletcher_core.engines.mlx.engine import MlxEngine
from fletcher_core.errors import ConfigError
from fletcher_core.models import ModelPackage, load_weights
from fletcher_core.tokens import TokenBatch, cumulative

BATCH = TokenBatch(np.arange(160, dtype=np.int32), cumulative(np.full(10, 16)))


def load(golden: Path) -> MlxEngine:
    package = ModelPackage.read(golden / "bert_tiny")
    weights = load_weights(package.folder, package.architecture)
    return MlxEngine(package, weights, normalize=True, dimension=128, precision="fp32", on_cpu=True)


@pytest.fixture(scope="module")
def engine(golden: Path) -> MlxEngine:
    return load(golden)


@pytest.fixture(scope="module")
def expected(engine: MlxEngine) -> np.ndarray:
    (vectors,) = engine.run([BATCH])
    return np.array(vectors)


def _right(kernel: Kernel, arrays: Any, static: Any, *_: Any) -> list[mx.array]:
    return kernel.fallback(arrays, static)


def _off_by_one(kernel: Kernel, arrays: Any, static: Any, *_: Any) -> list[mx.array]:
    return [output + 1 for output in kernel.fallback(arrays, static)]


def _broken(*_: Any) -> list[mx.array]:
    raise RuntimeError("[metal_kernel] error: use of undeclared identifier\nand more lines")


@pytest.mark.parametrize(
    ("launch", "reason"),
    [(_right, ""), (_off_by_one, "its output .* differs"), (_broken, "use of undeclared identifier$")],
)
def test_a_kernel_that_fails_its_check_is_replaced_and_the_vectors_stay_right(
    engine: MlxEngine,
    expected: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    launch: Callable[..., list[mx.array]],
    reason: str,
) -> None:
    launched: list[str] = []

    def counted(kernel: Kernel, *rest: Any) -> list[mx.array]:
        launched.append(kernel.name)
        return launch(kernel, *rest)

    monkeypatch.setattr(fletcher_kernels.selection, "launch", counted)
    kernels = KernelSet("metal")
    for holder in (engine._encoder, *engine._encoder.layers):
        monkeypatch.setattr(holder, "kernels", kernels)
    for _ in range(2):
        (vectors,) = engine.run([BATCH])
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    used = {"embed_norm", "add_norm", "pool"}  # float32 has no attention kernel
    assert set(launched) == used
    if reason:
        assert len(launched) == len(used), "each was tried once"
        assert set(kernels.replaced) == used
        for name in used:
            assert f"GPU kernel {name} is replaced by plain MLX operations" in caplog.text
        assert all(re.search(reason, why) for why in kernels.replaced.values())
    else:
        assert kernels.replaced == {}
        assert launched.count("add_norm") == 4 * engine._package.architecture.layers


def test_a_kernel_to_leave_out_that_does_not_exist_is_named(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLETCHER_KERNELS_OFF", "pool,softmax")
    with pytest.raises(ConfigError, match="FLETCHER_KERNELS_OFF names softmax; the kernels are embed_norm, rope"):
        load(golden)

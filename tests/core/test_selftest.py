import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from fletcher_kernels import KERNELS
from fletcher_kernels.kernel import Kernel

from fletcher_core import selftest as module
from fletcher_core.cli import main
from fletcher_core.embedder import Embedder
from fletcher_core.engines.mlx import checks
from fletcher_core.errors import EngineError


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any machine: the CPU engine embeds, and products are of a size for MLX's CPU backend."""
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    monkeypatch.setattr("fletcher_core.engines.choose.has_gpu", lambda: False)
    monkeypatch.setattr(checks, "PRODUCTS", ((64, 384, 384), (33, 128, 64)))
    monkeypatch.setattr(module, "_BENCHMARK_SECONDS", 0.3)


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part for GPUs with MLX's plain operations."""

    def check(report: module.Report) -> None:
        with ThreadPoolExecutor(1) as thread:
            module.check_device(report, thread, None)

    monkeypatch.setattr(module, "has_gpu", lambda: True)
    monkeypatch.setattr(module, "_check_gpu", check)


def test_without_a_gpu_it_says_so_and_checks_the_cpu_engine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["selftest", "--output", str(tmp_path / "figures.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "PASS"
    assert len(lines) < 80
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    for expected in (
        r"fletcher +\d",
        "mlx +",
        "No GPU that MLX can use was found",
        "engine +(native|openvino)",
        "ok   finite",
        "ok   unit length",
        "ok   meaning",
        r"throughput +[\d,]+ tokens/s",
        r"latency +[\d.]+ ms",
        r"memory +[\d.]+ GB",
    ):
        assert re.search(expected, text), expected
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["passed"] is True
    assert figures["tokens_per_second"] > 0


def test_quick_leaves_the_benchmark_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "meaning" in out
    assert "tokens/s" not in out


@pytest.mark.usefixtures("on_the_cpu")
def test_every_kernel_and_every_product_is_in_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["selftest", "--quick", "--output", str(tmp_path / "figures.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 80
    assert max(len(line) for line in lines if not line.startswith("device")) <= 120
    rows = [line.split()[0] for line in lines if line]
    for name, kernel in KERNELS.items():
        assert rows.count(name) == len(list(kernel.cases("metal")))
    assert rows.count("product") == 2
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {check["dtype"] for check in figures["kernels"]} == {"float16", "bfloat16", "float32"}
    assert len(figures["products"]) == 6


@pytest.mark.usefixtures("on_the_cpu")
def test_a_wrong_kernel_fails_the_test_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = KERNELS["rope"]

    def wrong(arrays: Any, static: Any) -> list[mx.array]:
        return [1.01 * output for output in right.fallback(arrays, static)]

    monkeypatch.setitem(KERNELS, "rope", replace(right, fallback=wrong))
    assert main(["selftest", "--quick"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "FAIL"
    failed = [line for line in lines if line.startswith("failed:")]
    assert failed
    assert all(re.match(r"failed: rope, .*(fp16|fp32): plain operations are off by", line) for line in failed)


def _fallbacks(kernel: Kernel, arrays: Any, static: Any, _: Any) -> list[mx.array]:
    return kernel.fallback(arrays, static)


def _one_wrong(kernel: Kernel, arrays: Any, static: Any, _: Any) -> list[mx.array]:
    outputs = kernel.fallback(arrays, static)
    return [output + 1 for output in outputs] if kernel.name == "swiglu" else outputs


def _one_broken(kernel: Kernel, arrays: Any, static: Any, _: Any) -> list[mx.array]:
    if kernel.name == "pool":
        raise RuntimeError("[metal] no such builtin\nsecond line")
    return kernel.fallback(arrays, static)


@pytest.mark.parametrize(
    ("launch", "name", "problem"),
    [(_one_wrong, "swiglu", "is off by"), (_one_broken, "pool", r"\[metal\] no such builtin")],
)
def test_a_gpu_kernel_that_is_wrong_or_does_not_run_is_named_with_its_replacement(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, launch: Any, name: str, problem: str
) -> None:
    monkeypatch.setattr(checks, "launch", launch)
    monkeypatch.setattr("fletcher_kernels.selection.launch", launch)
    report = module.Report()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(mx.set_default_device, mx.cpu).result()
        module.check_device(report, thread, "metal")
    out = capsys.readouterr().out
    assert report.failures
    assert all(re.match(f"{name}, .*: {problem}", failure) for failure in report.failures if name in failure)
    assert name in report.figures["replaced"]
    assert re.search(f"replace: *\n  {name}: ", out)


def test_a_silently_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mx.addmm

    def wrong_beyond_eight_rows(bias: mx.array, x: mx.array, weight: mx.array) -> mx.array:
        return mx.concatenate([right(bias, x[:8], weight), 0 * right(bias, x[8:], weight)])

    monkeypatch.setattr(checks.mx, "addmm", wrong_beyond_eight_rows)
    with mx.stream(mx.cpu):
        found = list(checks.check_products(((64, 96, 32),)))
    assert all(check.problem for check in found)


def test_vectors_that_are_wrong_fail_the_test(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, texts: 2 * embed(self, texts)[[0, 2, 1]])
    assert main(["selftest", "--quick"]) == 1
    out = capsys.readouterr().out
    assert "failed: unit length: norms within 1e+00 of 1" in out
    assert "failed: meaning: cosine" in out


def test_an_engine_that_does_not_load_is_a_failure_in_its_own_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Embedder:
        raise EngineError("MLX cannot run 'm' on Apple M9: no")

    monkeypatch.setattr(Embedder, "load", load)
    assert main(["selftest"]) == 1
    assert "failed: EngineError: MLX cannot run 'm' on Apple M9: no\nFAIL" in capsys.readouterr().out
    assert main(["selftest", "--quick", "--model", "m"]) == 1


def test_figures_that_cannot_be_written_are_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["selftest", "--quick", "--output", str(tmp_path / "no" / "figures.json")]) == 1
    assert "the figures cannot be written to" in capsys.readouterr().err

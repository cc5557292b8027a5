"""`fletcher selftest`: is this machine's device computing what it should, and how fast? Plain text for a bug report.

On a GPU each kernel is held to NumPy and to plain MLX operations first; then, on any machine, the model is held to what
every embedding model must do, and timed.
"""

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fletcher_core.benchmark import engine_throughput, memory_used, single_text_latency
from fletcher_core.embedder import Embedder
from fletcher_core.engines import choose
from fletcher_core.engines.choose import has_gpu
from fletcher_core.errors import ConfigError, FletcherError

if TYPE_CHECKING:
    from fletcher_core.engines.mlx.checks import Check

Result = TypeVar("Result")

_PARAPHRASE = ("The parcel arrived two days late.", "My package came two days after it was due.")
_UNRELATED = "Photosynthesis turns light into chemical energy."
_SHORT_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
_BENCHMARK_SECONDS = 5.0
# A text's length in the benchmark, in tokens.
_TEXT_TOKENS = 64
# Of the GPU's vectors with the CPU engine's in float32.
_LEAST_COSINE = 0.999


@dataclass
class Report:
    """What is printed, as it is found; `figures` is the same for machines."""

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    silent: bool = False

    def line(self, text: str = "") -> None:
        if not self.silent:
            print(text, flush=True)

    def fact(self, name: str, value: object) -> None:
        self.figures[name] = value
        self.line(f"{name:<12}{value}")

    def fail(self, text: str) -> None:
        self.failures.append(text)
        self.line(f"  FAIL {text}")

    def check(self, name: str, good: bool, detail: str) -> None:
        self.figures[name] = detail
        if good:
            self.line(f"  ok   {name}: {detail}")
        else:
            self.fail(f"{name}: {detail}")


def selftest(model: str, *, quick: bool = False, json_file: Path | None = None, as_json: bool = False) -> int:
    """Print the report; 0 if all is well, 1 if anything failed.

    Args:
        model: as `Embedder.load` takes it.
        quick: leave the benchmark out.
        json_file: where the figures go, too.
        as_json: print the figures as JSON in place of the report.

    Raises:
        ConfigError: `json_file` cannot be written.
    """
    report = Report(silent=as_json)
    _versions(report)
    if has_gpu():
        _check_gpu(report)
    else:
        report.line()
        report.line("No GPU that MLX can use was found: the kernels do not run here, the CPU engine does.")
        if sys.platform == "linux":
            report.line("On a machine with an NVIDIA GPU: install Fletcher's extra `cuda`.")
    _check_model(report, model, quick)
    report.line()
    for failure in report.failures:
        report.line(f"failed: {failure[:112]}")
    report.line("FAIL" if report.failures else "PASS")
    figures = {**report.figures, "failures": report.failures, "passed": not report.failures}
    if as_json:
        print(json.dumps(figures, default=str, ensure_ascii=False))
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(figures, indent=2, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the figures cannot be written to {json_file}: {error.strerror}") from error
    return 1 if report.failures else 0


def _versions(report: Report) -> None:
    for package in ("fletcher", "mlx", "openvino", "numpy"):
        report.fact(package, _version(package))
    report.fact("python", f"{platform.python_version()} {platform.machine()}")
    mac = platform.mac_ver()[0]
    report.fact("system", f"macOS {mac}" if mac else platform.platform())
    if driver := _nvidia_driver():
        report.fact("nvidia", driver)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _nvidia_driver() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""


def _check_gpu(report: Report) -> None:
    from fletcher_core.engines.mlx.device import gpu_dialect

    # MLX's streams belong to a thread. The engine makes one of its own when this one has ended.
    with ThreadPoolExecutor(1, thread_name_prefix="fletcher-selftest") as thread:
        try:
            check_device(report, thread, gpu_dialect())
        except (RuntimeError, ValueError) as error:  # after a fault of the GPU everything that MLX does raises
            report.fail(f"the device gave up: {str(error).strip()[:90]}")


def check_device(report: Report, thread: ThreadPoolExecutor, dialect: Any) -> None:
    """Kernels and products, on `thread`; with no dialect the plain operations alone, on the CPU."""
    from fletcher_core.engines.mlx import checks

    def call(work: Callable[[], Result]) -> Result:
        return thread.submit(work).result()

    if dialect is None:
        import mlx.core as mx

        call(lambda: mx.set_default_device(mx.cpu))
    described = call(checks.device_lines)
    report.figures["device_info"] = described
    report.line(f"{'device':<12}{', '.join(described)}")
    report.line()
    report.line(
        "largest error against float64 and difference from plain MLX, as shares of the largest value; times in fp16"
    )
    report.line(f"{'kernel':<11}{'case':<31}{'fp16':>8}{'bf16':>8}{'fp32':>8}{'to plain':>10}{'us':>8}{'plain us':>10}")
    kernels = report.figures.setdefault("kernels", [])
    replaced: dict[str, str] = {}
    for found in _on(thread, checks.check_kernels(dialect)):
        kernels.extend(asdict(check) for check in found)
        replaced |= {check.name: check.replaced for check in found if check.replaced}
        _table_row(report, found)
    products = list(_on(thread, checks.check_products(checks.PRODUCTS)))
    report.figures["products"] = [asdict(check) for check in products]
    for at in range(0, len(products), 3):
        _table_row(report, products[at : at + 3])
    if dialect is not None:
        report.figures["replaced"] = replaced
        report.line(f"kernels that the engine would replace: {'none' if not replaced else ''}")
        for name, reason in replaced.items():
            report.line(f"  {name}: {reason[:100]}")


def _on(thread: ThreadPoolExecutor, items: Iterator[Result]) -> Iterator[Result]:
    """`items`, each made on `thread`."""
    nothing = object()
    while (item := thread.submit(next, items, nothing).result()) is not nothing:
        yield item  # type: ignore[misc]


def _table_row(report: Report, found: "Sequence[Check]") -> None:
    errors = {check.dtype: check.error for check in found}
    cells = "".join(f"{errors[dtype]:>8.0e}" if dtype in errors else f"{'-':>8}" for dtype in _SHORT_TYPES)
    first = found[0]
    difference = max(check.difference for check in found)
    times = f"{first.seconds * 1e6:>8.0f}{first.plain_seconds * 1e6:>10.0f}"
    report.line(f"{first.name:<11}{first.case[:30]:<31}{cells}{difference:>10.0e}{times}")
    for check in found:
        if check.problem:
            report.fail(f"{check.name}, {check.case}, {_SHORT_TYPES[check.dtype]}: {check.problem}")


def _check_model(report: Report, model: str, quick: bool) -> None:
    """The engine that "auto" takes, end to end."""
    report.line()
    _progress(f"loading {model}")
    started = time.perf_counter()
    try:
        embedder = Embedder.load(model)
        engine = embedder.engine
        loading = time.perf_counter() - started
        report.fact("model", f"{embedder.card.name}, loaded in {loading:.1f} s")
        report.fact("engine", f"{engine.name} {engine.precision} on {engine.device}")
        if choose.has_gpu() and engine.name != "mlx":
            report.fail("the GPU engine does not start; the log above says why")
        for name, reason in getattr(getattr(engine, "kernels", None), "replaced", {}).items():
            # Who switched a kernel off knows it.
            tell = report.line if reason == "switched off" else report.fail
            tell(f"the engine replaced the kernel {name}: {reason[:90]}")
        _check_vectors(report, embedder)
        if engine.name != "openvino":
            _progress("comparing with float32 on the CPU")
            _compare(report, embedder, model)
        if not quick:
            _benchmark(report, embedder)
    except FletcherError as error:
        report.fail(f"{type(error).__name__}: {error}")


def _check_vectors(report: Report, embedder: Embedder) -> None:
    vectors = embedder.embed([*_PARAPHRASE, _UNRELATED]).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    report.check("finite", bool(np.isfinite(vectors).all()), f"{vectors.shape[0]} x {vectors.shape[1]} values")
    if embedder.normalize:
        off = float(np.abs(norms - 1).max())
        report.check("unit length", off < 1e-3, f"norms within {off:.0e} of 1")
    near, far = (float(vectors[0] @ vectors[n] / (norms[0] * norms[n])) for n in (1, 2))
    report.check("meaning", near > far, f"cosine {near:.3f} to a paraphrase, {far:.3f} to an unrelated text")


def _compare(report: Report, embedder: Embedder, model: str) -> None:
    texts = [*_PARAPHRASE, _UNRELATED, "long " * 300, "a", *(f"Text {n} of several." for n in range(40))]
    reference = Embedder.load(model, engine="openvino", precision="fp32").embed(texts)
    ours = embedder.embed(texts)
    scale = np.linalg.norm(reference, axis=1) * np.linalg.norm(ours, axis=1)
    least = float((np.einsum("nd,nd->n", reference, ours) / scale).min())
    report.check("as in float32", least >= _LEAST_COSINE, f"least cosine {least:.6f} over {len(texts)} texts")


def _benchmark(report: Report, embedder: Embedder) -> None:
    """Full batches for some seconds, then one text at a time."""
    engine = embedder.engine
    length = min(_TEXT_TOKENS, embedder.package.max_length)
    _progress("timing full batches")
    rate, size = engine_throughput(embedder, length, _BENCHMARK_SECONDS)
    report.figures["tokens_per_second"] = rate.tokens_per_second
    report.fact("throughput", f"{rate.tokens_per_second:,.0f} tokens/s, texts of {length} tokens, batches of {size}")
    _progress("timing single texts")
    latency = single_text_latency(embedder, _PARAPHRASE[0], _BENCHMARK_SECONDS)
    report.figures["latency_p50_seconds"] = latency.p50
    report.fact("latency", f"{latency.p50 * 1e3:.2f} ms for one short text, p50 of {latency.calls}")
    report.fact("memory", memory_used(engine))


def _progress(text: str) -> None:
    print(f"fletcher selftest: {text} ...", file=sys.stderr, flush=True)

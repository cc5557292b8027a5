"""The native tokenizer without Python: `run_corpus` holds it to a plain reference, for any compiler and processor."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def native_corpus() -> list[str]:
    """Inputs that libFuzzer found, those that once failed among them."""
    return [str(path) for path in sorted((ROOT / "tests" / "data" / "fuzz" / "native").iterdir())]


@pytest.fixture(scope="session")
def build_run_corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles `run_corpus`, in a folder of its own, with a compiler, its flags and options of CMake."""
    missing = [name for name in ("cmake", "ninja") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed in {sys.prefix}")
    import ninja

    def build(compiler: str, flags: str, *options: str) -> Path:
        if shutil.which(compiler) is None:
            pytest.skip(f"no {compiler} on the PATH")
        folder = tmp_path_factory.mktemp("run_corpus")
        configured = (f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_BUILD_TYPE=None")
        tools = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}", "-DFLETCHER_FUZZ=ON")
        source = ("-S", str(ROOT / "kernels" / "simd"), "-B", str(folder))
        _run(sys.executable, "-m", "cmake", *source, *tools, *configured, *options)
        _run(sys.executable, "-m", "cmake", "--build", str(folder), "--target", "run_corpus", "--parallel", "2")
        return folder / "run_corpus"

    return build


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout

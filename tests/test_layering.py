"""The layers: fletcher_core knows nothing of Dagster, engines nothing of the store, kernels no model, none the demo."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted((ROOT / "fletcher_core").rglob("*.py"))
ENGINES = sorted((ROOT / "fletcher_core" / "engines").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels" / "fletcher_kernels").rglob("*.py"))
DAGSTER = sorted((ROOT / "fletcher_dagster").rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of all that the file imports anywhere in it, inside functions too."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(paths: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in imported_modules(path)
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
    ]


def test_the_core_imports_neither_dagster_nor_its_integration() -> None:
    assert len(CORE) > 10
    assert violations(CORE, ("dagster", "fletcher_dagster", "demo")) == []


def test_the_engines_import_neither_the_store_nor_what_lies_beyond_it() -> None:
    assert ENGINES
    forbidden = ("store", "longbow", "sources", "changes", "pipeline")
    assert violations(ENGINES, tuple(f"fletcher_core.{name}" for name in forbidden)) == []


def test_the_kernels_import_neither_the_core_nor_dagster() -> None:
    assert len(KERNELS) > 5
    assert violations(KERNELS, ("fletcher_core", "fletcher_dagster", "dagster", "demo")) == []


def test_the_dagster_layer_does_not_import_the_demo() -> None:
    assert DAGSTER
    assert violations(DAGSTER, ("demo",)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import dagster",
        "from dagster._core import x",
        "from .. import store",
        "from ..store.segments import y",
    ],
)
def test_every_way_of_importing_is_seen(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "fletcher_core" / "engines" / "probe.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"def late() -> None:\n    {line}\n")
    assert len(violations([path], ("dagster", "fletcher_core.store"))) >= 1

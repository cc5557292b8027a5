"""What the documentation says is so: its commands exist, its files exist, and its Python runs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import duckdb
import numpy as np
import pytest
import yaml

from fletcher_dagster.yaml_models import DuckDBTableModel, FletcherModel, ParquetTableModel

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in set(anchors(file)), f"{page.name} links to {target}"


def anchors(page: Path) -> Iterator[str]:
    for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)(?=[`\s]*(?:$|[`#(]|  ))", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets
    if page.name == "README.md":
        assert {"demo", "test", "ui"} <= named


def test_the_readmes_targets_can_be_made() -> None:
    for target in ("demo", "test", "ui", "lint", "typecheck", "bench", "clean"):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_pages_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


def test_there_is_nothing_left_to_fill_in() -> None:
    for page in PAGES:
        assert not re.search(r"TODO|TBD|XXX|<!--|\?\?\?|\{[A-Z]+\}", page.read_text(encoding="utf-8")), page.name


def test_the_readmes_project_materializes_and_its_other_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's Python in order, as a user would run it beside a small shop's data, and what the docs add."""
    from fletcher_core.longbow.embedded import stop_embedded

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets").mkdir()
    with duckdb.connect("shop.duckdb") as connection:
        connection.execute("CREATE TABLE reviews (id INTEGER, title VARCHAR, body VARCHAR, product VARCHAR)")
        connection.execute(
            "INSERT INTO reviews VALUES (1, 'Never again', 'The glass was in pieces when I opened the box.', 'vase'), "
            "(2, 'Lovely', 'A present for my mother, who loves it.', 'vase'), (3, NULL, NULL, 'lamp')"
        )
        connection.execute("COPY (SELECT 'a' AS id, 'How do I return it?' AS message) TO 'tickets/1.parquet'")
    project, search, embedder, longbow = blocks(ROOT / "README.md", "python")
    (read_the_store,) = blocks(ROOT / "docs" / "store.md", "sql")
    cached, without_dagster = blocks(ROOT / "docs" / "how-it-works.md", "python")
    namespace: dict[str, object] = {}
    try:
        exec(compile(project, "README.md: your own project", "exec"), namespace)
        defs = namespace["defs"]
        assert isinstance(defs, dg.Definitions)
        dg.Definitions.validate_loadable(defs)
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process()
        assert result.success
        materialized = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
        assert materialized == {"reviews_embeddings", "tickets_embeddings"}
        capsys.readouterr()
        exec(compile(search, "README.md: search", "exec"), {})
        nearest = capsys.readouterr().out.splitlines()
        assert len(nearest) == 2
        assert re.match(r"0\.\d+ 1 \{'product': 'vase'\}", nearest[0])
        assert {row[0] for row in duckdb.sql(read_the_store).fetchall()} == {"1", "2"}
        exec(compile(without_dagster, "how-it-works.md", "exec"), {})
        assert capsys.readouterr().out.startswith("2 0 ")
    finally:
        stop_embedded(tmp_path / "vectors" / ".longbow")

    exec(compile(cached, "how-it-works.md: the cache", "exec"), {})
    assert capsys.readouterr().out == "0.0\n"
    exec(compile(embedder, "README.md: the embedder", "exec"), namespace)
    assert np.shape(namespace["vectors"]) == (2, 384)
    exec(compile(longbow, "README.md: a real Longbow", "exec"), {})


def test_the_yaml_of_the_component_has_only_fields_that_it_knows() -> None:
    (text,) = blocks(ROOT / "docs" / "dagster.md", "yaml")
    component = yaml.safe_load(text)
    assert component["type"] == "fletcher_dagster.FletcherEmbeddingsComponent"
    FletcherModel.model_validate(component["attributes"]["fletcher"])
    models = {"duckdb": DuckDBTableModel, "parquet": ParquetTableModel}
    sources = [entry["source"] for entry in component["attributes"]["embeddings"]]
    assert [models[source["type"]].model_validate(source).type for source in sources] == ["duckdb", "parquet"]


def test_the_tokenizer_pages_example_and_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "tokenizer.md"
    (example,) = blocks(page, "python")
    exec(compile(example, "tokenizer.md", "exec"), {})
    assert capsys.readouterr().out.endswith("[ 101 1037 3793  102  101 2178  102] [0 4 7] [4 3]\n")
    (commands,) = blocks(page, "sh")
    scripts = re.findall(r"^\.venv/bin/python (\S+)", commands, re.MULTILINE)
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script
    pytest.importorskip("fletcher_core.tokenizers._wordpiece", reason="the extension was not built: no C++ compiler")
    fuzz = [sys.executable, str(ROOT / scripts[0]), "--texts", "500", "--seed", "7"]
    run = subprocess.run(fuzz, capture_output=True, text=True, check=True)
    assert "500 texts without a difference" in run.stdout


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "docs" / "dagster.md", "python"))))
def test_the_python_of_the_dagster_page_defines_what_it_says(number: int) -> None:
    exec(compile(blocks(ROOT / "docs" / "dagster.md", "python")[number], "dagster.md", "exec"), {})


def test_the_metadata_keys_that_the_dagster_page_names_exist() -> None:
    code = (ROOT / "fletcher_dagster" / "metadata.py").read_text(encoding="utf-8")
    for key in re.findall(r"`(fletcher/[a-z_/]+)`", (ROOT / "docs" / "dagster.md").read_text(encoding="utf-8")):
        assert f'"{key}"' in code, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_of_a_command_that_is_named_exists(page: Path) -> None:
    named = ("search", "deliver", "reconcile", "compact", "selftest")
    commands = {f"fletcher {name}": f"fletcher_core.cli {name}" for name in named}
    commands["python -m fletcher_core.longbow.server"] = "fletcher_core.longbow.server"
    text = page.read_text(encoding="utf-8")
    for command, module in commands.items():
        for arguments in re.findall(rf"{re.escape(command)}([^`\n]*)", text):
            name, *rest = module.split()
            start = "import sys; from fletcher_core.cli import main; sys.exit(main(sys.argv[1:]))"
            run = ["-c", start, *rest] if name.endswith("cli") else ["-m", name]
            described = subprocess.run(
                [sys.executable, *run, "--help"], capture_output=True, text=True, check=True
            ).stdout
            assert set(re.findall(r"--[a-z-]+", arguments)) <= set(re.findall(r"--[a-z-]+", described)), command


def test_the_readmes_own_project_takes_about_twenty_lines() -> None:
    project = blocks(ROOT / "README.md", "python")[0]
    assert len([line for line in project.splitlines() if line.strip()]) <= 20

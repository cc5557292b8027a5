"""TLS between client and server with real certificates: what is trusted, what is refused, and what the refusal says."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from certificates import Authority

from fletcher_core.errors import ConfigError, LongbowRejected, LongbowUnavailable
from fletcher_core.longbow import Credentials, LongbowAddress, LongbowClient, LongbowSettings, Sender
from fletcher_core.longbow.drain import drain
from fletcher_core.longbow.handshake import explain_refusals
from fletcher_core.longbow.reconcile import reconcile
from fletcher_core.longbow.server import LongbowServer, ServerTls

ROWS = pa.table({"id": np.array([1, 2], np.uint64), "vector": pa.array([[1.0, 0], [0, 1]], pa.list_(pa.float32(), 2))})


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture
def pair(ours: Authority) -> tuple[Path, Path]:
    """Certificate and key of a server on this machine."""
    return ours.sign("server", "IP:127.0.0.1", "DNS:localhost")


@contextmanager
def serving(folder: Path, tls: ServerTls | None) -> Iterator[LongbowAddress]:
    with LongbowServer(folder / "rows", tls=tls) as server:
        yield server.address


def connect(address: LongbowAddress | str, **credentials: Any) -> LongbowClient:
    data, meta = (address, "") if isinstance(address, str) else (address.data, address.meta)
    texts = {name: str(value) for name, value in credentials.items()}
    return LongbowClient(LongbowSettings(data, meta, call_timeout=5, credentials=Credentials(**texts)))


def refusal(address: LongbowAddress | str, **credentials: Any) -> str:
    with connect(address, **credentials) as client, pytest.raises(LongbowRejected) as caught:
        client.readiness()
    return str(caught.value)


def test_every_kind_of_call_works_over_tls(tmp_path: Path, ours: Authority, pair: tuple[Path, Path]) -> None:
    with serving(tmp_path, ServerTls(*pair)) as address:
        assert address.tls
        assert address.data.startswith("grpc+tls://127.0.0.1:")
        with connect(address, tls_ca=ours.certificate) as client:
            assert client.readiness().status == "READY"
            assert client.put("docs", ROWS).rows == 2
            assert client.scan("docs").num_rows == 2
            assert client.search("docs", [[1, 0]], 1)[0]["id"].to_pylist() == [1]
            assert client.list_datasets() == ["docs"]  # the meta port
            client.delete("docs", 1)
        by_name = address.data.replace("127.0.0.1", "localhost")
        with connect(by_name, tls_ca=ours.certificate) as client:
            assert client.scan("docs").num_rows == 1


def test_a_sender_delivers_over_tls(tmp_path: Path, ours: Authority, pair: tuple[Path, Path], collection: Any) -> None:
    collection.write(upserts=["a", "b"])
    with serving(tmp_path, ServerTls(*pair)) as address, connect(address, tls_ca=ours.certificate) as client:
        sender = Sender(collection.generation, client)
        sender.start()
        report = sender.drain(timeout=20)
        sender.close()
        assert report.is_complete
        assert client.scan(collection.generation.name).num_rows == 2


def test_reconcile_sends_over_tls_what_the_server_lost(
    tmp_path: Path, ours: Authority, pair: tuple[Path, Path], collection: Any
) -> None:
    collection.write(upserts=["a", "b"])
    generation = collection.generation
    with serving(tmp_path, ServerTls(*pair)) as address, connect(address, tls_ca=ours.certificate) as client:
        with Sender(generation, client) as sender:
            assert drain(sender, timeout=20).is_complete
        rows = client.scan(generation.name)
        client.delete_dataset(generation.name)
        foreign = rows.set_column(0, "id", pa.array([1_000_000, 1_000_001], pa.uint64()))
        client.put(generation.name, foreign)  # as many rows as the ledger counts: only their ids tell
        report = reconcile(generation, client)
        assert (report.missing, report.sent, report.balances) == (2, 2, True)
        assert report.target == address.target
        assert generation.manifest.deliveries(address.data, generation.name) == []


def test_a_server_of_another_authority_is_not_trusted(
    tmp_path: Path, theirs: Authority, pair: tuple[Path, Path]
) -> None:
    with serving(tmp_path, ServerTls(*pair)) as address:
        assert "tls_ca" in refusal(address, tls_ca=theirs.certificate)
        assert "tls_ca" in refusal(address)  # the system does not know our authority


def test_an_expired_certificate_is_refused_by_its_reason(tmp_path: Path, ours: Authority) -> None:
    expired = ours.sign("expired", "IP:127.0.0.1", days=-1)
    with serving(tmp_path, ServerTls(*expired)) as address:
        assert "has expired" in refusal(address, tls_ca=ours.certificate)


def test_a_certificate_of_another_host_needs_its_name(tmp_path: Path, ours: Authority) -> None:
    elsewhere = ours.sign("elsewhere", "DNS:longbow.example")
    with serving(tmp_path, ServerTls(*elsewhere)) as address:
        assert "tls_server_name" in refusal(address, tls_ca=ours.certificate)
        assert "tls_server_name" in refusal(address, tls_ca=ours.certificate, tls_server_name="other.example")
        with connect(address, tls_ca=ours.certificate, tls_server_name="longbow.example") as client:
            assert client.readiness().status == "READY"


def test_mutual_tls_lets_in_only_clients_with_a_certificate_of_the_authority(
    tmp_path: Path, ours: Authority, theirs: Authority, pair: tuple[Path, Path]
) -> None:
    certificate, key = ours.sign("client", "DNS:client")
    stranger, stranger_key = theirs.sign("stranger", "DNS:client")
    with serving(tmp_path, ServerTls(*pair, client_ca=ours.certificate)) as address:
        with connect(address, tls_ca=ours.certificate, tls_certificate=certificate, tls_key=key) as client:
            assert client.put("docs", ROWS).rows == 2
            assert client.list_datasets() == ["docs"]
        assert "asks for a client certificate" in refusal(address, tls_ca=ours.certificate)
        said = refusal(address, tls_ca=ours.certificate, tls_certificate=stranger, tls_key=stranger_key)
        assert f"does not take the client certificate {str(stranger)!r}" in said


def test_one_side_with_tls_and_one_without_say_so(tmp_path: Path, ours: Authority, pair: tuple[Path, Path]) -> None:
    with serving(tmp_path / "tls", ServerTls(*pair)) as address:
        plain = address.data.removeprefix("grpc+tls://")
        assert f"speaks TLS; write its address as 'grpc+tls://{plain}'" in refusal(plain)
    with serving(tmp_path / "plain", None) as address:
        assert "does not speak TLS" in refusal(f"grpc+tls://{address.data}", tls_ca=ours.certificate)


@contextmanager
def hanging_up() -> Iterator[str]:
    """A port that takes connections and closes them at once, as a load balancer does without a server behind it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.mark.parametrize("scheme", ["grpc", "grpc+tls"])
def test_a_server_that_is_down_stays_worth_another_try(scheme: str, ours: Authority) -> None:
    with hanging_up() as place, connect(f"{scheme}://{place}") as client, pytest.raises(LongbowUnavailable):
        client.readiness()
    with connect(f"{scheme}://{place}") as client, pytest.raises(LongbowUnavailable, match="not reachable"):
        client.readiness()


def test_files_that_cannot_work_are_named_with_their_setting(
    tmp_path: Path, ours: Authority, pair: tuple[Path, Path]
) -> None:
    certificate, key = pair
    other_key = ours.sign("another", "DNS:another")[1]
    garbage, locked, missing = tmp_path / "garbage", tmp_path / "locked.key", tmp_path / "missing.pem"
    garbage.write_bytes(b"\x80 no PEM")
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----\n")
    cases: list[tuple[str, dict[str, Path]]] = [
        (f"tls_ca: '{missing}' cannot be read", {"tls_ca": missing}),
        ("tls_ca: .* holds no certificate in PEM form", {"tls_ca": garbage}),
        ("tls_ca: .* holds no certificate in PEM form", {"tls_ca": key}),
        ("tls_certificate: .* cannot be read", {"tls_certificate": missing, "tls_key": key}),
        ("tls_certificate: .* holds no certificate", {"tls_certificate": garbage, "tls_key": key}),
        ("tls_key: .* is not the PEM key of", {"tls_certificate": certificate, "tls_key": other_key}),
        ("tls_key: .* is not the PEM key of", {"tls_certificate": certificate, "tls_key": garbage}),
        ("tls_key: .* passphrase", {"tls_certificate": certificate, "tls_key": locked}),
    ]
    for match, files in cases:
        with pytest.raises(ConfigError, match=f"Longbow {match}"):
            connect("grpc+tls://127.0.0.1:9", **files)
    for match, arguments in (
        ("--tls-cert: .* cannot be read", (missing, key)),
        ("--tls-key: .* is not the PEM key", (certificate, other_key)),
        ("--tls-client-ca: .* holds no certificate", (certificate, key, garbage)),
    ):
        with pytest.raises(ConfigError, match=match):
            LongbowServer(tmp_path / "rows", tls=ServerTls(*arguments))


@pytest.mark.parametrize(
    ("match", "address", "credentials"),
    [
        ("tls_ca: set, but the address '10.0.0.1:3000' is one without TLS", "10.0.0.1:3000", {"tls_ca": "ca.pem"}),
        ("tls_server_name: set, but", "grpc://h:1", {"tls_server_name": "h"}),
        ("tls_key is empty", "grpc+tls://h:1", {"tls_certificate": "c.pem"}),
        ("tls_certificate is empty", "grpc+tls://h:1", {"tls_key": "c.key"}),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(match: str, address: str, credentials: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=match):
        LongbowSettings(address, credentials=Credentials(**credentials))


def test_both_addresses_must_agree_on_tls() -> None:
    assert LongbowAddress("grpc+tls://h:1", "h:5").meta == "grpc+tls://h:5"
    for data, meta in (("h:1", "grpc+tls://h:2"), ("grpc+tls://h:1", "grpc://h:2")):
        with pytest.raises(ConfigError, match="do not agree on TLS"):
            LongbowAddress(data, meta)


def test_the_ledger_names_a_server_alike_with_and_without_tls() -> None:
    assert LongbowAddress("grpc+tls://h:1").target == LongbowAddress("h:1").target == "h:1"


def test_a_server_process_speaks_tls_and_asks_for_the_token(
    tmp_path: Path, ours: Authority, pair: tuple[Path, Path]
) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-process\n")
    command = [sys.executable, "-m", "fletcher_core.longbow.server", "--data-path", str(tmp_path / "rows")]
    command += ["--data-port", "0", "--meta-port", "0", "--token-file", str(token)]
    command += ["--tls-cert", str(pair[0]), "--tls-key", str(pair[1]), "--tls-client-ca", str(ours.certificate)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        address = LongbowAddress(ready["data"], ready["meta"])
        trusted = {"tls_ca": ours.certificate, "tls_certificate": pair[0], "tls_key": pair[1]}
        with connect(address, **trusted, token_file=token) as client:
            assert client.readiness().status == "READY"
        assert "asks for a token" in refusal(address, **trusted)
    finally:
        process.terminate()
        process.wait(20)
    half = subprocess.run([*command[:9], "--tls-cert", str(pair[0])], capture_output=True, text=True, check=False)
    assert half.returncode == 1
    assert "needs both --tls-cert and --tls-key" in half.stderr


def test_a_proxys_bad_request_is_no_reason_to_try_again() -> None:
    """nginx lets the handshake pass and then says 400 where a client certificate is missing."""
    said = flight.FlightInternalError("Flight returned internal error: Received http2 header with status: 400")
    with (
        pytest.raises(LongbowRejected, match="tls_certificate"),
        explain_refusals("grpc+tls://h:1", "x", Credentials()),
    ):
        raise said
    with pytest.raises(flight.FlightInternalError), explain_refusals("h:1", "x", Credentials()):
        raise said

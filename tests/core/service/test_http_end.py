"""`fletcher serve` from its start to its end: signals with requests in hand, files that cannot be used, its log."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from http_server import ROOT, Process, answer_of, post, wait_for

sys.path.insert(0, str(ROOT / "tests/core/longbow"))
from certificates import Authority

KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        made.append(Process(*arguments, **environment))
        return made[-1]

    yield start
    for each in made:
        each.kill()


def connect(process: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", process.port), 60)


def slow_request() -> bytes:
    """A moment of work."""
    return post({"input": [f"{number} " + "word " * 200 for number in range(50)], "encoding_format": "base64"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_requests_in_hand_end(serve: Callable[..., Process], number: signal.Signals) -> None:
    service = serve("--precision", "fp32", "--request-timeout", "300")
    service.url()
    with connect(service) as busy, connect(service) as idle, connect(service) as half:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n")
        assert answer_of(idle)[0] == 200
        busy.sendall(slow_request())
        half.sendall(post({"input": "whose body is not all there yet"})[:-10])
        time.sleep(0.3)
        service.signal(number)
        wait_for(lambda: refuses(service))
        half.sendall(post({"input": "whose body is not all there yet"})[-10:])
        status, _, body = answer_of(half)
        assert status == 200, body
        status, headers, body = answer_of(busy)
        assert (status, headers["connection"]) == (200, "close")
        assert len(json.loads(body)["data"]) == 50
        assert service.end() == 0
    with socket.create_server(("127.0.0.1", service.port)):  # the port is free
        pass


def refuses(process: Process) -> bool:
    try:
        connect(process).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_does_not_end_in_time_is_told_so(serve: Callable[..., Process]) -> None:
    service = serve("--precision", "fp32", "--drain-timeout", "1")
    service.url()
    with connect(service) as slow:
        slow.sendall(post({"input": "whose body never comes"})[:-10])
        time.sleep(0.3)
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        status, headers, body = answer_of(slow)
        assert (status, headers["connection"]) == (503, "close")
        assert json.loads(body)["error"]["code"] == "ending"
        assert service.end() == 0
        assert time.monotonic() - began < 15


def test_a_second_signal_ends_it_at_once(serve: Callable[..., Process]) -> None:
    service = serve("--precision", "fp32")
    service.url()
    with connect(service) as slow:
        slow.sendall(post({"input": "whose body never comes"})[:-10])
        time.sleep(0.3)
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        wait_for(lambda: refuses(service))
        service.signal(signal.SIGTERM)
        assert service.end() == 0
        assert time.monotonic() - began < 15  # and not the 30 s of drain_timeout


# Every case in one process, which is an import of everything less for each; one that starts after all never ends.
REFUSALS = """
import json, sys
from fletcher_core.cli import main
for arguments in json.loads(sys.argv[1]):
    print("status", main(["serve", "--json", *arguments]), file=sys.stderr, flush=True)
"""


def refusals(*cases: tuple[str, ...], **environment: str) -> list[str]:
    """The one line of each `fletcher serve` that does not start."""
    command = [sys.executable, "-c", REFUSALS, json.dumps(cases)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["status 1"] * len(cases), done.stderr
    assert done.stdout == ""
    return [str(json.loads(line)["error"]["message"]) for line in lines[::2]]


def test_what_it_cannot_start_with_is_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    key = tmp_path / "key"
    key.write_text(KEY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = {
            f"cannot listen on 127.0.0.1:{port}": ("--port", port),
            "--tls-cert: ": ("--port", "0", "--tls-cert", str(bad), "--tls-key", str(bad)),
            "cannot listen on 256.0.0.1": ("--port", "0", "--host", "256.0.0.1", "--api-key-file", str(key)),
            "everybody on the network": ("--port", "0", "--host", "0.0.0.0"),
            "--drain-timeout is": ("--port", "0", "--drain-timeout", "inf"),
            "is empty": ("--port", "0", "--api-key-file", str(empty)),
        }
        for wanted, said in zip(cases, refusals(*cases.values()), strict=True):
            assert wanted in said
    (said,) = refusals(("--port", "0"), FLETCHER_API_KEY=f"{KEY}\x7f")
    assert "key" in said
    assert KEY not in said


def test_tls_keys_and_a_log_that_names_requests_but_no_key(serve: Callable[..., Process], tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "ca")
    certificate, key = authority.sign("server", "IP:127.0.0.1")
    file = tmp_path / "api-key"
    file.write_text(f"{KEY}\n")
    given = ("--tls-cert", str(certificate), "--tls-key", str(key), "--api-key-file", str(file))
    service = serve(*given, "--precision", "fp32")
    url = service.url()
    assert url.startswith("https://")
    context = ssl.create_default_context(cafile=str(authority.certificate))

    def get(path: str, **headers: str) -> bytes:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return bytes(
            urllib.request.urlopen(urllib.request.Request(url + path, headers=sent), context=context, timeout=20).read()
        )

    with pytest.raises(urllib.error.HTTPError) as refused:
        get("/v1/models", authorization=f"Bearer {KEY}x")
    assert refused.value.code == 401
    assert json.loads(get("/v1/models", authorization=f"Bearer {KEY}", x_request_id="a-request"))["data"]
    for _ in range(60):
        try:
            assert json.loads(get("/readyz"))["ready"]
            break
        except urllib.error.HTTPError as error:  # on a busy machine the known text may take too long
            if error.code != 503:
                raise
            time.sleep(0.5)
    else:
        pytest.fail("it does not become ready")
    assert KEY.encode() not in get("/metrics")
    service.signal(signal.SIGTERM)
    assert service.end() == 0
    assert not any(KEY in line for line in service.log)
    lines = [json.loads(line) for line in service.log]  # every one of them
    assert any("serving" in line["event"] for line in lines)


def test_an_error_that_nobody_planned_for_is_logged_with_the_request_s_id(tmp_path: Path) -> None:
    """In a process whose log is JSON and whose `/info` is broken."""
    code = (
        "from fletcher_core.service.http.tei import TeiApi\n"
        "from fletcher_core.cli import main\n"
        "import sys\n"
        "async def broken(self, request): raise RuntimeError('nobody planned for this')\n"
        "TeiApi.info = broken\n"
        "sys.exit(main(['serve', '--port', '0', '--json', '--precision', 'fp32']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    try:
        threading.Thread(target=lambda: log.extend(iter(process.stderr.readline, "")), daemon=True).start()
        wait_for(lambda: any("http://" in line for line in log), 60)
        url = next(line for line in log if "http://" in line).split("http://")[1].split('"')[0].split()[0]
        request = urllib.request.Request(f"http://{url}/info", headers={"x-request-id": "number-5"})
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(request, timeout=20)
        assert failed.value.code == 500
        assert b"nobody planned for this" not in failed.value.read()
        assert failed.value.headers["x-request-id"] == "number-5"
        wait_for(lambda: any("nobody planned for this" in line for line in log))
        (line,) = [json.loads(line) for line in log if "nobody planned for this" in line]
        assert line["request_id"] == "number-5"
    finally:
        process.kill()
        process.wait()

"""`python -m chaos.fuzz_http`: damaged HTTP and damaged JSON on raw sockets at `fletcher serve`, on all of its routes.

A case is a burst of connections of one kind: JSON with values of every kind, odd heads, lengths and chunks that are not
true, damaged bytes, clients that leave. After each the service must run, say that it is well, and give a known text its
vector; no answer may be a 5xx but 503 and 504 with their reason, none to a whole request may stay out, nothing may wait
in the queue or count as a panic, and connections, memory and threads come back to what they were. Case n of a seed
sends the same bytes everywhere: `--case n` runs it alone. The last line is JSON.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from chaos.http_bursts import KINDS, Sent, burst
from chaos.results import keep

_KNOWN = "a text whose vector is known"
_SECONDS = 30.0  # for the answer to a whole request, and for the service to come to rest
_GLANCE = 0.05  # for what may come of any other
_MORE_MEMORY = 400.0  # MB
_SAVED_BYTES = 20_000


class Service:
    """`fletcher serve` in a process of its own, and what it was like at the beginning."""

    def __init__(self) -> None:
        code = "import sys; from fletcher_core.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "serve", "--port", "0", "--precision", "fp32", "--log-format", "json"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = ""
        for said in self._process.stderr:
            if "http://127.0.0.1:" in said:
                break
        else:
            raise SystemExit(f"the service did not start: {said}")
        self.port = int(re.search(r"http://127.0.0.1:(\d+)", said)[1])  # type: ignore[index]
        self._words: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self._vector = self._known()
        for _ in range(5):
            self._known()
        self.files, self.memory, self.panics = self._files(), self._memory(), self._metric("fletcher_panics_total")

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._words = [*self._words[-20:], line]

    def send(self, sent: list[Sent]) -> list[str]:
        """One burst; what is wrong with its answers."""
        connections = [socket.create_connection(("127.0.0.1", self.port), _SECONDS) for _ in sent]
        for connection, each in zip(connections, sent, strict=True):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for piece in each.pieces:
                    connection.sendall(piece)
                if each.end == "half":
                    connection.shutdown(socket.SHUT_WR)
                elif each.end == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:  # it has refused the rest
                continue
        found = []
        for connection, each in zip(connections, sent, strict=True):
            if each.end not in ("close", "reset"):
                found += _wrong(_answers(connection, each.whole), each.whole)
            connection.close()
        return found

    def wrong(self) -> list[str]:
        """What is wrong with the service after a burst."""
        if (status := self._process.poll()) is not None:
            return [f"it ended with status {status}: {''.join(self._words[-5:])[-600:]}"]
        try:
            status, body = self._ask("GET", "/healthz")
            found = [] if status == 200 else [f"/healthz says {status}: {body[:200]!r}"]
            if float(np.abs(self._known() - self._vector).max()) > 1e-5:
                found.append("a known text has another vector")
            if self._metric("fletcher_panics_total") != self.panics:
                self.panics = self._metric("fletcher_panics_total")
                found.append(f"it counts a panic: {self._panic()}")
            if not _soon(lambda: self._metric("fletcher_queue_tokens") == 0):
                found.append(f"{self._metric('fletcher_queue_tokens')} tokens stay in the queue")
            if not _soon(lambda: self._files() <= self.files + 2):
                found.append(f"{self._files()} files are open and were {self.files}")
            if self._memory() > self.memory + _MORE_MEMORY:
                found.append(f"memory went from {self.memory:.0f} MB to {self._memory():.0f} MB")
                self.memory = self._memory()
        except (OSError, http.client.HTTPException) as error:
            return [f"it does not answer: {type(error).__name__}: {error}"]
        return found

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        """Its status, told to end in order; it is killed when it does not."""
        self._process.terminate()
        try:
            return self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _panic(self) -> str:
        traces = [json.loads(line).get("exception", "") for line in self._words if '"exception"' in line]
        return traces[-1].rstrip()[-500:] if traces else ""

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SECONDS)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _known(self) -> np.ndarray[Any, Any]:
        """Of an overloaded service, once it takes requests again."""
        until, status, body = time.monotonic() + _SECONDS, 429, b""
        while status == 429 and time.monotonic() < until:
            time.sleep(0.2 if body else 0.0)
            status, body = self._ask("POST", "/v1/embeddings", json.dumps({"input": _KNOWN}).encode())
        if status != 200:
            raise OSError(f"a good request is answered {status}: {body[:300]!r}")
        return np.array(json.loads(body)["data"][0]["embedding"], np.float32)

    def _metric(self, name: str) -> float:
        _, body = self._ask("GET", "/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", body.decode(), re.MULTILINE))

    def _files(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def _memory(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


def _soon(holds: Any) -> bool:
    until = time.monotonic() + _SECONDS
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def _answers(connection: socket.socket, whole: bool) -> bytes:
    """What comes until the server closes, or for a while; of a whole request, one answer with its body."""
    data = b""
    connection.settimeout(_SECONDS if whole else _GLANCE)
    try:
        while piece := connection.recv(1 << 20):
            data += piece
            if whole and _is_complete(data):
                break
    except OSError:  # no more of it came, or it was reset
        pass
    return data


def _is_complete(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    while found and head.startswith(b"HTTP/1.1 100"):
        head, found, body = body.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return bool(found and length and len(body) >= int(length[1]))


def _wrong(data: bytes, whole: bool) -> list[str]:
    statuses = [int(status) for status in re.findall(rb"(?m)^HTTP/1\.1 (\d{3})", data)]
    if not statuses:
        return ["a whole request has no answer"] if whole else []
    said = data[-400:]
    found = [f"status {status}: {said!r}" for status in statuses if status >= 500 and status not in (503, 504)]
    if statuses[-1] in (503, 504) and b'"error"' not in said:
        found.append(f"status {statuses[-1]} without a reason: {said!r}")
    if whole and statuses[-1] != 200 and b"Invalid HTTP request" not in said:
        body = data.rpartition(b"\r\n\r\n")[2]
        try:
            if "error" not in json.loads(body):
                found.append(f"an error of another shape: {said!r}")
        except ValueError:
            found.append(f"an error that is no JSON: {said!r}")
    return found


def signature(kind: str, said: str) -> str:
    """Equal for findings that are probably the same one: the first words, without numbers."""
    words = re.sub(r"[0-9]+", "", said)[:90]
    return hashlib.sha256(f"{kind}{words}".encode()).hexdigest()[:10]


def main() -> int:
    """Exit status 1 when there are findings."""
    parser = argparse.ArgumentParser(prog="python -m chaos.fuzz_http", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--case", type=int, default=None, help="run this case alone")
    parser.add_argument("--only", default="", choices=("", *KINDS), help="one kind")
    parser.add_argument("--replay", type=Path, default=None, help="folder of kept cases that are run first")
    parser.add_argument("--save", type=Path, default=None, help="folder for the findings of this run")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service ends as well
    kept = sorted(options.replay.glob("*.json")) if options.replay else []
    started = time.monotonic()
    outcomes: Counter[str] = Counter()
    findings: dict[str, dict[str, Any]] = {}
    service = Service()

    def run(case: int, kind: str, sent: list[Sent]) -> None:
        nonlocal service
        try:
            said = service.send(sent)
        except OSError as error:
            said = [f"no connection: {error}"]
        said += service.wrong()
        outcomes[f"{kind}{': finding' if said else ''}"] += 1
        for words in said:
            name = signature(kind, words)
            if name not in findings:
                print(f"case {case} {kind}: {words}", file=sys.stderr, flush=True)
                findings[name] = {"case": case, "kind": kind, "said": words[:400], "times": 0}
                _save(options.save, name, {"seed": options.seed, "only": options.only, **findings[name]}, sent)
            findings[name]["times"] += 1
        if not service.lives:
            service = Service()

    try:
        for number, file in enumerate(kept):
            saved = json.loads(file.read_text())
            if "sent" in saved:
                run(number - len(kept), saved["kind"], [Sent.from_json(each) for each in saved["sent"]])
            else:
                run(number - len(kept), *burst(saved["seed"], saved["case"], saved["only"]))
        began, case = time.monotonic(), options.case or 0
        while True:  # one at least
            run(case, *burst(options.seed, case, options.only))
            case += 1
            if options.case is not None or time.monotonic() - began >= options.seconds:
                break
    finally:
        status = service.end()
    if status != 0:
        findings["end"] = {"case": -1, "kind": "end", "said": f"it ended with status {status}", "times": 1}
    summary = {"fuzz": "http", "seed": options.seed, "seconds": round(time.monotonic() - started, 1)}
    summary |= {"cases": sum(outcomes.values()), "kept": len(kept), "outcomes": dict(outcomes.most_common())}
    summary |= {"findings": list(findings.values())}
    keep("fuzz_http", summary)
    print(json.dumps(summary))
    return 1 if findings else 0


def _save(folder: Path | None, name: str, finding: dict[str, Any], sent: list[Sent]) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    bursts = [each.as_json() for each in sent]
    if len(json.dumps(bursts)) <= _SAVED_BYTES:
        finding = {**finding, "sent": bursts}
    (folder / f"{finding['kind']}-{name}.json").write_text(json.dumps(finding, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

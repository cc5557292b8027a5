"""A proxy between a client and an S3 server that counts requests and does them harm: an HTTP server of one file.

A fault is a function of a request's number, method and path that says what happens to it; see `Fault`.
"""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from fletcher_core.store import VectorStore

OpenOn = Callable[[str], VectorStore]
"""Opens the test's store as the machine of this name would."""

Fault = Literal["", "drop before", "drop after", "slow down", "error", "error after", "truncate", "delay"]
"""What happens to a request: nothing; the connection ends before or after the server got it; the proxy answers 503
SlowDown or 500 in the server's place, or 500 when the server has done it; half of the body comes; it takes 0.1 s."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, or has seen enough."""


class Proxy:
    """Listens on a port of its own, for the server at `port`."""

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.fault: Callable[[int, str, str], Fault] = lambda number, method, path: ""
        self.away = False
        self.requests: list[tuple[str, str]] = []
        self.bytes = Counter[str]()
        self.faults = Counter[str]()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Counts from nothing."""
        self.requests.clear()
        self.bytes.clear()
        self.faults.clear()

    def counts(self) -> dict[str, int]:
        """Requests by method and first folder below the store."""
        return dict(Counter(f"{method} {path.split('?')[0]}" for method, path in self.requests))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy._lock:
                    proxy.requests.append((self.command, self.path))
                    proxy.bytes["sent"] += len(body)
                    number = len(proxy.requests)
                    fault = "drop before" if proxy.away else proxy.fault(number, self.command, self.path)
                    proxy.faults[fault] += 1
                if fault == "drop before":
                    self.close_connection = True
                    return
                if fault in ("slow down", "error"):
                    self.answer_with_error(503 if fault == "slow down" else 500)
                    return
                if fault == "delay":
                    time.sleep(0.1)
                self.pass_on(body, fault)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815

            def pass_on(self, body: bytes, fault: Fault) -> None:
                connection = http.client.HTTPConnection("127.0.0.1", proxy.server_port, timeout=30)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if fault == "drop after":
                    self.close_connection = True
                    return
                if fault == "error after":
                    self.answer_with_error(500)
                    return
                self.send_response(answer.status)
                passed = ("connection", "transfer-encoding", "server", "date", "content-length")
                for name, value in answer.getheaders():
                    if name.lower() not in passed:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                if self.command == "HEAD":
                    return
                with proxy._lock:
                    proxy.bytes["received"] += len(data)
                if fault == "truncate":
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(data)

            def answer_with_error(self, status: int) -> None:
                code = "SlowDown" if status == 503 else "InternalError"
                data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


def s3_client(proxy: Proxy) -> Any:
    """boto3's, straight to the server."""
    import boto3

    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{proxy.server_port}", **keys)

"""A collector in this process: OTLP over HTTP in, decoded spans out."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Listens on a free port of loopback until `close`. `status` is its answer; `headers` those of the requests.

    With `held` it answers nobody who sends spans until somebody posts to /release.
    """

    def __init__(self, status: int = 200, *, held: bool = False) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        collector = self
        released = threading.Event()
        if not held:
            released.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                if self.path == "/release":
                    released.set()
                if self.path == "/v1/traces":
                    released.wait()
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200 if self.path == "/release" else status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing on standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resources(self) -> list[dict[str, str]]:
        return [
            {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
            for request in list(self.requests)
            for resource in request.resource_spans
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

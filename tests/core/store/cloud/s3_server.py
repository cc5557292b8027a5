"""moto's S3 server in a process of its own: prints its port, serves until its standard input ends.

    python s3_server.py

Puts wait for each other: moto looks whether an object is there before it puts it, and two could both find none.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def one_put_at_a_time(application: Application) -> Application:
    putting = threading.Lock()

    def serve(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] != "PUT":
            return application(environment, start_response)
        with putting:
            return list(application(environment, start_response))

    return serve


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *arguments: object) -> None:
        pass


def main() -> None:
    application = one_put_at_a_time(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

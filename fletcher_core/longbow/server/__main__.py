"""`python -m fletcher_core.longbow.server`: one embedded server as a process, one JSON line when it is ready."""

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from fletcher_core.errors import ConfigError, FletcherError
from fletcher_core.longbow.server.access import ServerTls
from fletcher_core.longbow.server.faults import parse_faults
from fletcher_core.longbow.server.ports import LongbowServer

_GRACE_SECONDS = 5.0  # for open streams to end; Longbow gives them 30


def main() -> int:
    """Serve until SIGTERM, SIGINT or `--idle-exit` seconds without a call."""
    parser = argparse.ArgumentParser(prog="python -m fletcher_core.longbow.server", description=__doc__)
    parser.add_argument("--data-path", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--data-port", type=int, default=3000, help="0 chooses a free one")
    parser.add_argument("--meta-port", type=int, default=3001, help="0 chooses a free one")
    parser.add_argument("--idle-exit", type=float, default=None, metavar="SECONDS")
    parser.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="certificate of the server; both ports then speak TLS"
    )
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its key")
    parser.add_argument("--tls-client-ca", type=Path, metavar="PEM", help="only clients that it signed may connect")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="token that every call must bring")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME[=VALUE]", help="may be repeated")
    options = parser.parse_args()

    stop = threading.Event()

    def request_stop(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    try:
        server = LongbowServer(
            options.data_path,
            host=options.host,
            data_port=options.data_port,
            meta_port=options.meta_port,
            faults=parse_faults(options.fault),
            tls=_tls(options),
            token_file=options.token_file,
        )
    except (FletcherError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    with server:
        ready = {"data": server.address.data, "meta": server.address.meta, "pid": os.getpid()}
        _announce(options.data_path / "address.json", ready)
        print(json.dumps(ready), flush=True)
        while not stop.wait(0.5):
            idle = options.idle_exit is not None and server.idle_seconds > options.idle_exit
            if idle or not options.data_path.is_dir():  # nobody can find it any more once its folder is deleted
                break
        _cut_open_streams()
    return 0


def _tls(options: argparse.Namespace) -> ServerTls | None:
    """The TLS files. Raises ConfigError when one of them misses another."""
    if options.tls_cert and options.tls_key:
        return ServerTls(options.tls_cert, options.tls_key, options.tls_client_ca)
    if options.tls_cert or options.tls_key or options.tls_client_ca:
        raise ConfigError("TLS needs both --tls-cert and --tls-key, and --tls-client-ca only beside them")
    return None


def _cut_open_streams() -> None:
    """End the process soon, should a client hold a put open: closing a port waits for it. Its rows are not stored."""
    cut = threading.Timer(_GRACE_SECONDS, os._exit, [0])
    cut.daemon = True
    cut.start()


def _announce(path: Path, ready: dict[str, object]) -> None:
    """Leave the address where `ensure_embedded` looks for it; it stays, so that the ports can be used again."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(ready))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())

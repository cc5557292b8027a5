"""Servers that a test starts, stops, kills and empties: real ones as processes, and the embedded one.

In: a folder, settings. Out: a server that keeps its ports and its rows over restarts, until it is told otherwise.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.server import Faults, LongbowServer

_START_SECONDS = 60.0  # an emulated server on a busy machine
_STOP_SECONDS = 70.0  # Longbow gives open streams 30 s to end, then its workers as many


class LongbowProcess:
    """`command` and `settings` (LONGBOW_... without the prefix) of a real server; `stop` and `start` keep its rows."""

    def __init__(self, folder: Path, command: Sequence[str], **settings: object) -> None:
        self.folder = folder
        self.settings = settings
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = free_ports(3)
        self.start()

    @property
    def address(self) -> LongbowAddress:
        return LongbowAddress(f"127.0.0.1:{self._ports[0]}", f"127.0.0.1:{self._ports[1]}")

    @property
    def write_ahead_log(self) -> Path:
        return self.folder / "data" / "wal.log"

    def start(self, **settings: object) -> None:
        """Start it on the same ports; returns when both are open, which is after it has replayed its log."""
        self.stop()
        self.settings |= settings
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment(), cwd=self.folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not all(map(_is_open, self._ports[:2])):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                self.kill()
                raise RuntimeError(f"the server {self._command} did not start: {tail}")
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def wipe(self) -> None:
        """Kill it and start it without its rows."""
        self.kill()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.start()

    def pause(self) -> None:
        """Stop it from running, as an overloaded machine does: connections stay open and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            try:
                self._process.wait(_STOP_SECONDS)
            finally:
                self._process.kill()
                self._process = None

    def _environment(self) -> dict[str, str]:
        """Nothing of ours: Longbow reads variables without its prefix too, such as LOG_LEVEL."""
        values = {
            "LISTEN_ADDR": self.address.data,
            "META_ADDR": self.address.meta,
            "METRICS_ADDR": f"127.0.0.1:{self._ports[2]}",
            "DATA_PATH": str(self.folder / "data"),
            "MAX_MEMORY": 64 * 2**30,  # an account only: each dataset with an index counts 100 MiB
            "AUTO_SHARDING_ENABLED": "false",
            "NODE_ID": "test",
            **self.settings,
        }
        home = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)}
        return home | {f"LONGBOW_{name}": str(value) for name, value in values.items()}


class EmbeddedServer:
    """The embedded server, inside this process, with the same switches; `faults` as the command line has them.

    A kill loses its last two puts and brings back what was deleted, as a real server's may.
    """

    def __init__(self, folder: Path, **faults: object) -> None:
        self.folder = folder
        self.faults = Faults(no_extensions=True, **faults)  # type: ignore[arg-type]
        self._lost = Faults()
        self._server: LongbowServer | None = None
        self._ports = free_ports(2)
        self.address = LongbowAddress(*(f"127.0.0.1:{port}" for port in self._ports))
        self.start()

    def start(self, **faults: object) -> None:
        """Start it on the same ports; `faults` are added to those before."""
        self.stop()
        self.faults = replace(self.faults, **faults)  # type: ignore[arg-type]
        opened = replace(
            self.faults,
            lose_last_puts=self._lost.lose_last_puts,
            resurrect_deletes=self._lost.resurrect_deletes or self.faults.resurrect_deletes,
        )
        data, meta = self._ports
        self._server = LongbowServer(self.folder / "data", data_port=data, meta_port=meta, faults=opened)
        self._lost = Faults()

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def kill(self) -> None:
        self.stop()
        self._lost = Faults(lose_last_puts=2, resurrect_deletes=True)

    def wipe(self) -> None:
        self.stop()
        shutil.rmtree(self.folder / "data")
        self.start()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True

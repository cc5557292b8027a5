"""Dagster as it is deployed: a code server, a webserver and the daemon, as processes over one home.

In come the home's folder and the file with the definitions; out come a client of the webserver and a daemon that can be
killed and started anew. All processes, and those that they started, are gone when the block is left.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from webserver_client import WebserverClient

LOCATION = "live"
_PATIENCE = 120.0  # seconds that a process may take to start; about 8 on a quiet machine

_DAGSTER_YAML = """
telemetry: {{enabled: false}}
nux: {{enabled: false}}
compute_logs: {{module: dagster.core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}}
concurrency:
  pools: {{default_limit: {pool_limit}, granularity: op}}
  runs: {{max_concurrent_runs: {max_runs}}}
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config: {{dequeue_interval_seconds: 1}}
"""

# The daemon looks at its backfills every 30 seconds and at its sensors every 5, which is no setting; here it does every
# second.
_DAEMON = """
import dagster._daemon.controller as controller
import dagster._daemon.sensor as sensor
controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 1
sensor.MIN_INTERVAL_LOOP_TIME = 1
from dagster._daemon.cli import main
main()
"""


@dataclass
class Dagster:
    """What runs: `web` talks to the webserver, and `start_daemon` gives the process of a daemon over the same home."""

    web: WebserverClient
    daemon: subprocess.Popen[bytes]
    start_daemon: Callable[[], subprocess.Popen[bytes]]

    def kill_daemon(self) -> None:
        """As a lost machine would: nothing is put in order before it is gone."""
        self.daemon.kill()
        self.daemon.wait()

    def start_another_daemon(self) -> None:
        """In place of one that was killed."""
        self.daemon = self.start_daemon()


def prepare_home(home: Path, pool_limit: int = 1, max_runs: int = 4) -> None:
    """A home in SQLite whose runs are queued; `pool_limit` steps of a pool run at once, and `max_runs` runs."""
    home.mkdir(parents=True, exist_ok=True)
    # Dagster refuses the older place of the runs' limit beside the newer one.
    (home / "dagster.yaml").write_text(_DAGSTER_YAML.format(pool_limit=pool_limit, max_runs=max_runs))


@contextmanager
def running(home: Path, definitions: Path, environment: Mapping[str, str]) -> Iterator[Dagster]:
    """The processes over `home`, started and answering; their output goes to files in it."""
    variables = {
        **os.environ,
        **environment,
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    workspace = home / "workspace.yaml"
    code_port, port = _free_port(), _free_port()
    workspace.write_text(
        f"load_from: [{{grpc_server: {{host: 127.0.0.1, port: {code_port}, location_name: {LOCATION}}}}}]\n"
    )
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(_process(home / f"{name}.log", arguments, variables))

        def start_daemon() -> subprocess.Popen[bytes]:
            return start("daemon", "-c", _DAEMON, "run", "-w", str(workspace))

        address = ("-h", "127.0.0.1", "-p", str(code_port))
        code = start("code", "-m", "dagster", "api", "grpc", "-f", str(definitions), *address)
        _until(code, home / "code.log", lambda: _listens(code_port))
        address = ("-h", "127.0.0.1", "-p", str(port))
        web = start("web", "-m", "dagster_webserver", "-w", str(workspace), *address)
        daemon = start_daemon()
        with WebserverClient(f"http://127.0.0.1:{port}", LOCATION) as client:
            _until(web, home / "web.log", lambda: _listens(port) and _loaded(client))
            _until(daemon, home / "daemon.log", client.daemon_is_healthy)
            yield Dagster(client, daemon, start_daemon)


@contextmanager
def _process(log: Path, arguments: tuple[str, ...], variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process in a session of its own, which is ended with all that it started."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
            # Where the tests run in the background SIGINT is ignored, and Dagster would ignore SIGTERM with it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # runs and their steps that are left


def _until(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{log.stem} did not start:\n{log.read_text('utf-8', 'replace')[-4000:]}")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _loaded(client: WebserverClient) -> bool:
    try:
        return client.repository() is not None
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

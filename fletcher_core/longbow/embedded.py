"""The embedded server as a process of its own: found when it runs, started when it does not.

In: a folder. Out: the address of the one server that owns it, ready for calls. Several processes may ask at once.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fletcher_core
from fletcher_core.errors import ConfigError, LongbowError, LongbowUnavailable
from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.breaker import CircuitBreaker, reset_breaker
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.credentials import Credentials
from fletcher_core.longbow.server.catalog import make_folder, owner

IDLE_EXIT = 15 * 60.0
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.02
_TOKEN = "token"
_seen: dict[str, int] = {}  # the process of the server that last answered at an address


def ensure_embedded(folder: Path | str, *, idle_exit: float = IDLE_EXIT, private: bool = False) -> LongbowAddress:
    """The address of the server on `folder`, started if need be; it ends by itself after `idle_exit` seconds alone.

    The server outlives this process and takes the same ports again when it is started again, so that what was
    delivered to it stays known under its address. A `private` one asks every call for a token that only this user can
    read, and its folder is closed to others: connect with `embedded_credentials`. One that runs without a token is
    ended and started again with one.

    Raises LongbowUnavailable, naming the log, when it does not start, and LongbowError when the folder cannot be used.
    """
    folder = Path(folder).resolve()
    address = _running(folder)
    if address is not None and (_has_token(folder) or not private):
        return address
    make_folder(folder)
    with _exclusive(folder / "start.lock"):
        if private and not _has_token(folder):
            stop_embedded(folder)
            _make_private(folder)
        deadline = time.monotonic() + _START_SECONDS
        process = None if owner(folder) is not None else _start(folder, idle_exit)
        while (address := _running(folder)) is None:
            if process is not None and process.poll() is not None:
                raise LongbowUnavailable(
                    f"the embedded Longbow server ended with status {process.returncode} instead of starting; "
                    f"its log {folder / 'server.log'} ends with: {_last_line(folder / 'server.log')}"
                )
            if time.monotonic() > deadline:
                raise LongbowUnavailable(
                    f"the embedded Longbow server of {folder} is not ready after {_START_SECONDS:.0f} s; "
                    f"see {folder / 'server.log'}, and end process {owner(folder)} if it hangs"
                )
            if process is None and owner(folder) is None:  # the one that we waited for has ended
                process = _start(folder, idle_exit)
            time.sleep(_POLL_SECONDS)
    return address


def stop_embedded(folder: Path | str) -> bool:
    """End the server on `folder` and wait until it has let go of it; False when none was running.

    Raises LongbowError when it does not end in time.
    """
    folder = Path(folder).resolve()
    deadline = time.monotonic() + _STOP_SECONDS
    signalled = None
    while (process := owner(folder)) is not None:
        if process and process != signalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
            signalled = process
        if time.monotonic() > deadline:
            raise LongbowError(f"the embedded Longbow server of {folder} does not end: kill process {process}")
        time.sleep(_POLL_SECONDS)
    return signalled is not None


def _running(folder: Path) -> LongbowAddress | None:
    """The address of the server that owns the folder, if there is one and it answers."""
    announced = _announced(folder)
    if announced is None or announced[1] != owner(folder):
        return None
    try:
        settings = LongbowSettings(announced[0].data, announced[0].meta, credentials=embedded_credentials(folder))
        # With a breaker of its own: a server that is not up yet is asked again and again.
        with LongbowClient(settings, breaker=CircuitBreaker()) as client:
            client.readiness()
    except (LongbowError, ConfigError):
        return None
    if _seen.get(settings.data) != announced[1]:  # what failed at this address before was another server's fault
        reset_breaker(settings.data)
        _seen[settings.data] = announced[1]
    return announced[0]


def embedded_credentials(folder: Path | str) -> Credentials:
    """What the server on `folder` asks for: the token of a private one, else nothing."""
    folder = Path(folder).resolve()
    return Credentials(token_file=str(folder / _TOKEN) if _has_token(folder) else "")


def _has_token(folder: Path) -> bool:
    """Whether its servers ask for a token; an empty file is what a full disk leaves of one."""
    try:
        return (folder / _TOKEN).stat().st_size > 0
    except OSError:
        return False


def _make_private(folder: Path) -> None:
    """A new random token for the folder's servers. Raises LongbowError where files cannot be closed to others."""
    try:
        folder.chmod(0o700)
        fresh = folder / f"{_TOKEN}.new"  # whole or not there: half a token would lock the folder for good
        fresh.unlink(missing_ok=True)
        with open(fresh, "x", opener=_for_owner_only) as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / _TOKEN)
    except OSError as error:
        raise LongbowError(
            f"{folder} cannot be closed to other users ({error}): choose a folder of your own for the embedded server"
        ) from error


def _for_owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def announced_address(folder: Path) -> LongbowAddress | None:
    """Where the last server on this folder listened, whether or not it still does."""
    announced = _announced(folder)
    return announced[0] if announced else None


def _announced(folder: Path) -> tuple[LongbowAddress, int] | None:
    """Address and process of the last server that was ready on this folder."""
    try:
        values = json.loads((folder / "address.json").read_text())
        return LongbowAddress(values["data"], values["meta"]), values["pid"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):  # there is none, or it is damaged
        return None


def _start(folder: Path, idle_exit: float) -> subprocess.Popen[bytes]:
    """A detached server process, on the ports of its predecessor if they are free."""
    announced = _announced(folder)
    data, meta = (announced[0].data, announced[0].meta) if announced else ("", "")
    command = [sys.executable, "-m", "fletcher_core.longbow.server", "--data-path", str(folder)]
    command += ["--data-port", _free_port(data), "--meta-port", _free_port(meta), "--idle-exit", str(idle_exit)]
    if _has_token(folder):
        command += ["--token-file", str(folder / _TOKEN)]
    sources = str(Path(fletcher_core.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [sources, os.environ.get("PYTHONPATH", "")]))
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )


def _free_port(address: str) -> str:
    """The port of an earlier address if nobody listens there now, else 0: any."""
    host, _, port = address.rpartition(":")
    if not port:
        return "0"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return "0"
    return port


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """One starter at a time; whoever waits finds the server running."""
    try:
        file = path.open("w")
    except OSError as error:
        raise LongbowError(
            f"the embedded Longbow server of {path.parent} cannot be started: {error.strerror}. Allow writing there, "
            "or name a server that runs"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "(empty)"

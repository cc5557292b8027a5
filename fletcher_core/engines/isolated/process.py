"""The worker's process as its parent sees it: started, spoken to with an eye on the clock, killed when it must be."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing import spawn
from pathlib import Path
from typing import IO

import fletcher_core
from fletcher_core import errors
from fletcher_core.engines.devices import environment
from fletcher_core.engines.isolated.arena import Arena
from fletcher_core.engines.isolated.messages import Closed, Message, Messages
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.errors import EngineError, FletcherError
from fletcher_core.telemetry.metrics import PANICS

_LAST_WORDS = 2000  # bytes of standard error that go into a message


class EngineLost(EngineError):
    """The engine's process has ended, hangs, or computes wrong vectors: it is of no use until it is started anew."""


class WorkerProcess:
    """One process with one engine; ends with this object, with our own process, or when `end` is called.

    `ready` is what the worker says of its engine.

    Raises:
        EngineLost: the process ended or was silent for `patience` seconds before the engine was ready.
        FletcherError: what the engine's loading raised, of the same class.
    """

    def __init__(self, spec: EngineSpec, patience: float) -> None:
        try:
            self.arena = Arena()
        except OSError as error:
            raise EngineLost(f"no memory can be shared with an engine's process: {error}") from error
        self._words = bytearray()
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                self._messages = Messages(ours)
                self._process = _start(theirs.fileno(), self.arena.descriptor, environment(spec.device))
        except OSError as error:
            self.arena.close()
            raise EngineLost(f"the engine's process cannot be started: {error}") from error
        self.end = weakref.finalize(self, _end, self._process, self._messages, self.arena)
        assert self._process.stderr is not None
        listening = (self._process.stderr, self._words)
        self._listener = threading.Thread(target=_listen, args=listening, name="fletcher-worker-words", daemon=True)
        self._listener.start()
        self.send({"kind": "load", "spec": asdict(spec)})
        ready = self.receive(time.monotonic() + patience)
        if ready is None:
            self.end()
            raise EngineLost(f"the engine's process was not ready after {patience:.0f} s and was ended")
        if ready["kind"] == "refused":
            self.end()
            kind = getattr(errors, ready["error"], EngineError)
            raise (kind if issubclass(kind, FletcherError) else EngineError)(ready["message"])
        self.ready = ready

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, *messages: Message) -> None:
        """Raises EngineLost when the process has ended."""
        try:
            self._messages.send(*messages)
        except Closed as closed:
            raise EngineLost(self._obituary()) from closed

    def fileno(self) -> int:
        """Of the connection: readable when a message has come, or the process has ended."""
        return self._messages.fileno()

    def receive(self, deadline: float) -> Message | None:
        """The next message; None at `deadline` (of `time.monotonic`).

        Raises EngineLost when the process has ended.
        """
        try:
            while True:
                message = self._messages.receive(max(0.0, deadline - time.monotonic()))
                if message is None or message["kind"] != "log":
                    return message
                logging.getLogger(message["name"]).log(message["level"], "%s", message["message"])
        except Closed as closed:
            raise EngineLost(self._obituary()) from closed

    def forget(self) -> None:
        """In a forked process: leave the worker to our parent."""
        self.end.detach()
        self._messages.close()

    def _obituary(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        status = self._process.poll()
        how = (
            "closed its connection"
            if status is None
            else f"was ended by signal {signal.Signals(-status).name}"
            if status < 0
            else f"ended with status {status}"
        )
        if self.end.alive:
            PANICS.labels("engine").inc()
        self.end()
        self._listener.join(1.0)
        words = bytes(self._words).decode(errors="replace").strip().splitlines()
        return f"the engine's process {how}" + (f"; its last words: {words[-1]}" if words else "")


def _start(connection: int, memory: int, device: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    # What can be imported here can be there, in the same order; nothing from the folder that we happen to be in (-P).
    sources = str(Path(fletcher_core.__file__).resolve().parents[1])
    path = os.pathsep.join(dict.fromkeys([*(entry for entry in sys.path if entry and isinstance(entry, str)), sources]))
    level = logging.getLogger("fletcher_core").getEffectiveLevel()
    return subprocess.Popen(
        [
            os.fsdecode(spawn.get_executable()),
            "-P",
            "-m",
            "fletcher_core.engines.isolated",
            str(connection),
            str(memory),
            str(level),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(connection, memory),
        env={**os.environ, "PYTHONPATH": path, **device},
    )


def _listen(stderr: IO[bytes], words: bytearray) -> None:
    """Keep the last of what the process writes to standard error, however much that is."""
    with stderr:
        while data := os.read(stderr.fileno(), 1 << 12):
            words += data
            del words[:-_LAST_WORDS]


def _end(process: "subprocess.Popen[bytes]", messages: Messages, arena: Arena) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold on to it; the kernel will see it off
        process.wait(5.0)
    messages.close()
    arena.close()

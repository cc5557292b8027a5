"""A case in a process of its own: its outcome out, also where it crashes, hangs or takes too much memory."""

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """`kind` is what the case said of itself, or "crash", "hang", "memory"; `detail` the words to find it by."""

    case: int
    kind: str
    detail: str
    seconds: float


@dataclass
class _Running:
    case: int
    process: int
    pipe: int
    started: float
    said: bytes = b""


def run_forked(
    cases: Iterator[int],
    run: Callable[[int], tuple[str, str]],
    *,
    workers: int,
    seconds: float,
    memory: int,
) -> Iterator[Outcome]:
    """Run `run(case)` -> (kind, detail) for each case in a fork of this process, `workers` at once.

    A case may take `seconds` and `memory` bytes of address space beyond what this process has. This process must have
    no threads of its own that hold locks: import everything before, run nothing.
    """
    running: dict[int, _Running] = {}
    more = True
    while more or running:
        while more and len(running) < workers:
            case = next(cases, None)
            if case is None:
                more = False
                break
            started = _start(case, run, memory)
            running[started.pipe] = started
        if not running:
            return
        ready, _, _ = select.select(list(running), [], [], 0.1)
        for pipe in ready:
            data = os.read(pipe, 65536)
            running[pipe].said += data
            if not data:
                yield _end(running.pop(pipe), memory, hung=False)
        for pipe in [p for p, one in running.items() if time.monotonic() - one.started > seconds]:
            os.kill(running[pipe].process, signal.SIGKILL)
            yield _end(running.pop(pipe), memory, hung=True)


def _start(case: int, run: Callable[[int], tuple[str, str]], memory: int) -> _Running:
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return _Running(case, process, read, time.monotonic())
    status = 3
    try:
        os.close(read)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory(memory)
        try:
            kind, detail = run(case)
        except Exception as error:  # noqa: BLE001
            kind, detail = "broken case", f"{type(error).__name__}: {error}"
        os.write(write, json.dumps([kind, detail[:4000]]).encode())
        status = 0
    finally:
        os._exit(status)


def _limit_memory(memory: int) -> None:
    """Linux only: elsewhere the largest resident size tells afterwards."""
    try:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))


def _end(one: _Running, memory: int, *, hung: bool) -> Outcome:
    os.close(one.pipe)
    _, status, usage = os.wait4(one.process, 0)
    seconds = time.monotonic() - one.started
    if hung:
        return Outcome(one.case, "hang", f"more than {seconds:.0f} s", seconds)
    if not one.said or status:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        return Outcome(one.case, "crash", how, seconds)
    kind, detail = json.loads(one.said)
    resident = usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)
    if resident > memory + 2**30:
        return Outcome(one.case, "memory", f"{resident / 2**20:.0f} MiB resident; {kind}: {detail}", seconds)
    return Outcome(one.case, kind, detail, seconds)

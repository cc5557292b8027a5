"""How soon `/readyz` notices that the engine hangs, dies or computes nonsense, and that it is well again.

    .venv/bin/python bench/readiness.py [--rounds 5]

A real service over HTTP, asked every 50 ms. Its engine is broken from outside: by a file that it looks at before each
batch, and, where it runs in a process of its own, by signals to that process. Promised: not ready within 2 seconds,
ready again within 10 of the engine's recovery.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MODES = ("nan", "hang", "die")
LIMITS = (2.0, 10.0)  # seconds


class MoodyEngine:
    """`engine`, in the mood that a file says."""

    def __init__(self, engine: Any, mood: Path) -> None:
        self._engine = engine
        self._mood = mood

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, batches: Iterable[Any], stop: Any = None) -> Iterator[np.ndarray]:
        from fletcher_core.errors import EngineError

        for batch in batches:
            while (mood := self._mood.read_text()) == "hang":
                time.sleep(0.01)
            if mood == "die":
                raise EngineError("the device has fallen off the bus")
            (vectors,) = self._engine.run([batch])
            yield np.full_like(vectors, np.nan) if mood == "nan" else vectors


def service(mood: Path, isolation: str) -> None:
    """The child: serves until it is told to end."""
    from fletcher_core.embedder import Embedder
    from fletcher_core.service.run import NICENESS, serve
    from fletcher_core.service.settings import ServiceSettings

    engine = "native" if isolation == "process" else "auto"
    embedder = Embedder.load(isolation=isolation, niceness=NICENESS, engine=engine)  # type: ignore[arg-type]
    if isolation == "none":
        embedder.engine = MoodyEngine(embedder.engine, mood)  # type: ignore[assignment]
    serve(embedder, ServiceSettings(port=0), started=lambda at: print(at.http, flush=True))


@contextmanager
def serving(mood: Path, isolation: str) -> Iterator[tuple[str, int]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, __file__, "--serve", str(mood), isolation]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        mood.write_text("")
        process.terminate()
        process.wait(60)


def ready(url: str) -> tuple[bool, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return True, json.load(answer)
    except urllib.error.HTTPError as error:
        return False, json.load(error)


def seconds_until(url: str, wanted: bool, most: float = 60.0) -> tuple[float, dict[str, Any]]:
    began = time.monotonic()
    while time.monotonic() - began < most:
        found, report = ready(url)
        if found is wanted:
            return time.monotonic() - began, report
        time.sleep(0.05)
    raise SystemExit(f"{url} was not {'ready' if wanted else 'unready'} within {most} s")


def row(name: str, noticed: list[float], back: list[float], said: str) -> None:
    print(f"{name:<34}{max(noticed):>12.2f}{max(back):>12.2f}   {said[:90]}", flush=True)


def _story(url: str, pid: int, number: signal.Signals) -> str:
    """What `/readyz` says from the moment on when the engine's process gets the signal."""
    seconds_until(url, True)
    (worker,) = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    began = time.monotonic()
    os.kill(int(worker), number)
    moments: list[tuple[float, bool, bool]] = []
    while time.monotonic() - began < 60:
        found, report = ready(url)
        state = (found, report["engine"].get("standing_in", False))
        if not moments or moments[-1][1:] != state:
            moments.append((time.monotonic() - began, *state))
        if len(moments) > 1 and state == (True, False):
            break
        time.sleep(0.05)
    return ", ".join(
        f"{at:.1f} s {'ready' if ok else 'not ready'}{' by the other engine' if other else ''}"
        for at, ok, other in moments
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, metavar=("FILE", "ISOLATION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        service(Path(options.serve[0]), options.serve[1])
        return
    print(f"longest of {options.rounds} rounds, seconds\n{'':<34}{'not ready':>12}{'back':>12}")
    with tempfile.TemporaryDirectory() as folder:
        mood = Path(folder) / "mood"
        mood.write_text("")
        within = True
        with serving(mood, "none") as (url, _):
            for mode in MODES:
                noticed, back, said = [], [], ""
                for _ in range(options.rounds):
                    seconds_until(url, True)
                    time.sleep(0.3)  # anywhere within the second that a finding holds
                    mood.write_text(mode)
                    seconds, report = seconds_until(url, False)
                    noticed.append(seconds)
                    said = report["reason"]
                    mood.write_text("")
                    back.append(seconds_until(url, True)[0])
                row(f"the engine: {mode}", noticed, back, said)
                within = within and max(noticed) <= LIMITS[0] and max(back) <= LIMITS[1]
        for number in (signal.SIGKILL, signal.SIGSTOP):
            with serving(mood, "process") as (url, pid):
                print(f"its process: {number.name:<21}{_story(url, pid, number)}", flush=True)
    raise SystemExit(0 if within else 1)


if __name__ == "__main__":
    main()

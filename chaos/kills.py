"""kill -9, again and again, of writers, of their engines' processes and of the server: nothing lost, doubled or wrong.

    python -m chaos.kills --runs 500 --seed 1          # make chaos-kills

A source goes on changing; each run brings the store and an embedded Longbow up to date and is killed at a random moment
of the time that such a run takes, it (with its sender), its engine's worker or the server. Every so many kills a run
is let go to its end, and store and server are compared with a clean embedding of the source.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from chaos.notes import COLLECTION, Notes, check_books
from chaos.results import keep
from fletcher_core import Embedder
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded
from fletcher_core.longbow.server.catalog import owner
from fletcher_core.pipeline import MaterializeSettings, materialize
from fletcher_core.store import VectorStore

Victim = Literal["writer", "server", "worker"]
_VICTIMS: tuple[Victim, ...] = ("writer", "server", "worker")

# Small segments, committed at once, and often merged: as many moments as possible at which a kill can do harm.
SETTINGS = MaterializeSettings(segment_rows=16, commit_seconds=0.0, max_segments=6, delivery_timeout=10.0)
_PATIENCE = 120.0
_TIMED = 10  # kills between two runs that nobody kills


@dataclass
class Place:
    """Where everything is."""

    root: Path
    notes: Notes

    @property
    def longbow(self) -> Path:
        return self.root / "longbow"

    @property
    def store(self) -> Path:
        return self.root / "store"


def run_once(place: Place, make_embedder: Callable[[], Embedder], announce: int | None = None) -> str:
    """Bring everything up to date; the delivery's problem, "" when there was none."""
    address = ensure_embedded(place.longbow)
    embedder = make_embedder()
    if announce is not None:
        pid = getattr(getattr(embedder.engine, "primary", None), "pid", 0)
        os.write(announce, f"{pid}\n".encode())
    with (
        VectorStore.open(place.store, collection=COLLECTION) as store,
        LongbowClient(LongbowSettings(address.data, address.meta)) as client,
    ):
        report = materialize(place.notes.source, embedder=embedder, store=store, longbow=client, settings=SETTINGS)
        return report.delivery.problem


def killed_run(place: Place, make_embedder: Callable[[], Embedder], victim: Victim, after: float) -> str:
    """A run in a process of its own of which `victim` is killed `after` seconds from its start; how the run ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        log = os.open(place.root / "runs.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            run_once(place, make_embedder, write)
            status = 0
        except Exception as error:  # noqa: BLE001 - a run whose server is killed may fail, the next one does the rest
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as started:
        worker = int(started.readline().strip() or 0)
    time.sleep(after)
    target = {"writer": child, "server": owner(place.longbow) or 0, "worker": worker}[victim]
    if target:
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            target = 0
    deadline = time.monotonic() + _PATIENCE
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGABRT)
            os.waitpid(child, 0)
            raise SystemExit(f"a run hangs whose {victim} was killed after {after:.3f} s; see {place.root}")
        time.sleep(0.002)
    if not target:
        return "over before the kill"
    code = os.waitstatus_to_exitcode(ended[1])
    return {0: "finished", 1: "failed", -signal.SIGKILL: "killed"}.get(code, f"ended with {code}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check-every", type=int, default=20, help="kills between two checks of everything")
    parser.add_argument("--rows", type=int, default=240)
    options = parser.parse_args()
    print(f"{options.runs} kills, seed {options.seed}", flush=True)
    chance = random.Random(options.seed)
    outcomes: Counter[str] = Counter()
    checks: list[dict[str, object]] = []
    started = time.monotonic()
    embedder = Embedder.load(engine="cpu", precision="bf16", threads=1)

    def isolated() -> Embedder:
        return Embedder.load(engine="cpu", precision="bf16", threads=1, isolation="process")

    with TemporaryDirectory(prefix="fletcher-kills-") as folder:
        place = Place(Path(folder), Notes(Path(folder) / "notes.duckdb", chance))
        rewrite(place.notes, 0, 0, options.rows)
        whole_run(place, lambda: embedder)  # the first has everything to do
        lengths: list[float] = []
        for number in range(1, options.runs + 1):
            rewrite(place.notes, 20, 4, 4)
            if number % _TIMED == 1:  # the machine may be busier than it was, and the moments are to cover a whole run
                lengths.append(whole_run(place, lambda: embedder))
                rewrite(place.notes, 20, 4, 4)
            victim = chance.choices(_VICTIMS, [7, 2, 1])[0]
            after = chance.uniform(0.0, statistics.median(lengths[-3:]))
            make = isolated if victim == "worker" else lambda: embedder
            outcomes[f"{victim}: {killed_run(place, make, victim, after)}"] += 1
            if number % options.check_every == 0 or number == options.runs:
                books = in_a_process(lambda: let_go_and_check(place, embedder))
                checks.append({"after": number, "rows": len(place.notes.rows), "books": books})
                took = time.monotonic() - started
                print(f"{number} kills, {took:.0f} s: {len(place.notes.rows)} rows, {books or 'ok'}", flush=True)
        stop_embedded(place.longbow)
    failed = [check for check in checks if check["books"]]
    figures = {
        "seed": options.seed,
        "kills": options.runs,
        "outcomes": dict(sorted(outcomes.items())),
        "checks": len(checks),
        "failed_checks": failed,
        "seconds": round(time.monotonic() - started, 1),
        "run_seconds": round(statistics.median(lengths), 3),
    }
    keep("kills", figures)
    print(figures)
    return 1 if failed else 0


def rewrite(notes: Notes, changed: int, deleted: int, added: int) -> None:
    """The table after some changes."""
    notes.change(changed, deleted, added)
    if problem := in_a_process(lambda: notes.write()):
        raise SystemExit(f"the source cannot be written: {problem}")


def whole_run(place: Place, make_embedder: Callable[[], Embedder]) -> float:
    """Seconds of a run that nobody kills."""
    began = time.monotonic()
    if problem := in_a_process(lambda: run_once(place, make_embedder)):
        raise SystemExit(f"a run that nobody killed has a problem: {problem}")
    return time.monotonic() - began


def let_go_and_check(place: Place, embedder: Embedder) -> str:
    """A run to its end, then everything looked at; what is wrong in words."""
    problem = run_once(place, lambda: embedder)
    address = ensure_embedded(place.longbow)
    with (
        VectorStore.open(place.store, collection=COLLECTION) as store,
        LongbowClient(LongbowSettings(address.data, address.meta)) as client,
    ):
        books = check_books(place.notes.rows, store, client, embedder)
    return "" if books.balance and not problem else f"{books} {problem}"


def in_a_process(work: Callable[[], str | None]) -> str:
    """`work()` in a forked process: this one never opens a connection or a thread that a fork would lose."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            said = work() or ""
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said if not status else f"{said} (the process ended with status {os.waitstatus_to_exitcode(status)})"


if __name__ == "__main__":
    sys.exit(main())

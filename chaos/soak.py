"""Full rate for a long time with a fault every minute: memory, open files and threads stay flat, the books balance.

    python -m chaos.soak --minutes 40 --seed 1             # make chaos-soak

One process embeds a source that goes on changing, run after run, into one store and one embedded Longbow. Each minute
something is done to the engine's worker or to the server. Resources of all three processes are read every few seconds.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from chaos.broken_engine import Faults
from chaos.notes import COLLECTION, Notes, check_books
from chaos.results import keep
from chaos.setting import Server, broken, failover_embedder
from fletcher_core import Embedder
from fletcher_core.longbow.server.catalog import owner
from fletcher_core.pipeline import MaterializeSettings, materialize
from fletcher_core.store import VectorStore

SETTINGS = MaterializeSettings(segment_rows=1024, commit_seconds=2.0, max_segments=12, delivery_timeout=5.0)
_SAMPLE_SECONDS = 5.0
# Of the second quarter's median, which the last quarter's may not pass: what is kept of a burst is not a leak.
_MORE = {"rss_mb": 1.15, "files": 1.25, "threads": 1.25}


@dataclass
class Resources:
    """Samples (seconds, process, resident MB, open files, threads)."""

    started: float
    samples: list[dict[str, Any]] = field(default_factory=list)

    def sample(self, processes: dict[str, int | None]) -> None:
        for name, pid in processes.items():
            if pid and (values := _of_process(pid)):
                self.samples.append({"second": round(time.monotonic() - self.started, 1), "process": name, **values})

    def quarters(self, process: str, figure: str) -> list[float]:
        """Medians over the four quarters of the time."""
        end = time.monotonic() - self.started
        parts: list[list[float]] = [[], [], [], []]
        for one in self.samples:
            if one["process"] == process:
                parts[min(3, int(4 * one["second"] / end))].append(one[figure])
        return [median(part) if part else 0.0 for part in parts]


def _of_process(pid: int) -> dict[str, float] | None:
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return {
            "rss_mb": round(int(status["VmRSS"].split()[0]) / 1024, 1),
            "files": files,
            "threads": int(status["Threads"]),
        }
    except (OSError, KeyError, ValueError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    parser.add_argument("--fault-seconds", type=float, default=60.0, help="between two faults")
    options = parser.parse_args()
    print(f"{options.minutes:.0f} minutes, seed {options.seed}", flush=True)
    chance = random.Random(options.seed)
    plain = Embedder.load(engine="cpu", threads=options.threads)
    done: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    with TemporaryDirectory(prefix="fletcher-soak-") as folder, broken(Faults()):
        place = Path(folder)
        server = Server(place / "longbow")
        embedder = failover_embedder(plain, options.threads)
        engine: Any = embedder.engine
        resources = Resources(time.monotonic())
        over = threading.Event()

        def processes() -> dict[str, int | None]:
            return {"fletcher": os.getpid(), "engine": engine.primary.pid, "server": owner(place / "longbow")}

        def sample() -> None:
            while not over.wait(_SAMPLE_SECONDS):
                resources.sample(processes())

        def harm() -> None:
            faults = _faults(server, engine, place, chance)
            while not over.wait(options.fault_seconds):
                name = chance.choice(list(faults))
                done[name] += 1
                print(f"{time.monotonic() - resources.started:.0f} s: {name}; {dict(counts)}", flush=True)
                try:
                    faults[name]()
                except Exception as error:  # noqa: BLE001 - counted, and the next one is tried
                    failed[name] += 1
                    print(f"{name} did not work: {type(error).__name__}: {error}", flush=True)

        threads = [threading.Thread(target=work, daemon=True) for work in (sample, harm)]
        for thread in threads:
            thread.start()
        notes = Notes(place / "notes.duckdb", chance=random.Random(options.seed))
        notes.change(0, 0, options.rows)
        seconds = 0.0
        client = server.client()
        with VectorStore.open(place / "store", collection=COLLECTION) as store:
            while time.monotonic() - resources.started < 60 * options.minutes:
                notes.write()
                report = materialize(notes.source, embedder=embedder, store=store, longbow=client, settings=SETTINGS)
                counts.update(
                    runs=1,
                    embedded=report.embedded,
                    quarantined=report.quarantined,
                    engine_failures=report.engine_failures,
                    standby_batches=report.standby_batches,
                    runs_with_rows_waiting=bool(report.delivery.problem),
                )
                seconds += report.seconds_total
                notes.change(len(notes.rows) // 2, 40, 40)
            over.set()
            for thread in threads:
                thread.join()
            notes.write()
            server.start()
            server.fault()
            last = materialize(notes.source, embedder=embedder, store=store, longbow=client, settings=SETTINGS)
            for _ in range(20):
                if not last.delivery.problem:
                    break
                last = materialize(notes.source, embedder=embedder, store=store, longbow=client, settings=SETTINGS)
            books = check_books(notes.rows, store, client, plain)
        embedder.close()
        server.stop()
    flat = {
        process: {figure: resources.quarters(process, figure) for figure in _MORE}
        for process in ("fletcher", "engine", "server")
    }
    # The server keeps every version of every row, as Longbow does: it grows by what it is sent.
    leaks = [
        f"{process} {figure}: {quarters}"
        for process, figures in flat.items()
        for figure, quarters in figures.items()
        if quarters[3] > quarters[1] * _MORE[figure] + 2 and (process, figure) != ("server", "rss_mb")
    ]
    figures = {
        "seed": options.seed,
        "minutes": options.minutes,
        "rows": options.rows,
        "faults": dict(done),
        "faults_that_did_not_work": dict(failed),
        **counts,
        "texts_per_s": round(counts["embedded"] / max(seconds, 1e-9), 1),
        "medians_by_quarter": flat,
        "leaks": leaks,
        "books": "balanced" if books.balance else str(books),
        "last_problem": last.delivery.problem,
    }
    keep("soak", figures)
    print(figures)
    return 1 if leaks or not books.balance or 2 * failed.total() > done.total() else 0


def _faults(server: Server, engine: Any, place: Path, chance: random.Random) -> dict[str, Callable[[], None]]:
    def kill(pid: int | None) -> None:
        if pid:
            os.kill(pid, signal.SIGKILL)

    def kill_server() -> None:
        kill(owner(place / "longbow"))
        time.sleep(chance.uniform(0.5, 8.0))
        server.start()

    def for_a_while(**faults: Any) -> Callable[[], None]:
        def fault() -> None:
            server.fault(**faults)
            time.sleep(chance.uniform(3.0, 15.0))
            server.fault()

        return fault

    def freeze() -> None:
        if engine.primary.pid:
            os.kill(engine.primary.pid, signal.SIGSTOP)  # a hang; the watch kills it

    return {
        "kill the engine's process": lambda: kill(engine.primary.pid),
        "freeze the engine's process": freeze,
        "kill the server": kill_server,
        "restart the server empty": server.wipe,
        "stall": for_a_while(stall_before_flush=True),
        "fail 30 % of calls": for_a_while(fail_share=0.3),
        "reset mid-stream": for_a_while(unavailable_mid_stream=100),
        "refuse every put": for_a_while(resource_exhausted=True),
        "drop rows after OK": for_a_while(drop_after_ok=True),
    }


if __name__ == "__main__":
    sys.exit(main())

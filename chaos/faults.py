"""One fault after the other, injected into a run: where every row went, how fast it was, how soon all was well again.

    python -m chaos.faults --rows 1500 --seed 1            # make chaos-faults
    python -m chaos.faults --only hang,stall               # some of the cases

Each case begins with a store and a server that are up to date, rewrites the source, brings both up to date under the
fault and compares them with a clean embedding. A row must be searchable, or in the quarantine for the right reason.
"""

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chaos.broken_engine import Faults, is_chosen
from chaos.notes import COLLECTION, Notes, check_books
from chaos.results import keep
from chaos.setting import Server, broken, failover_embedder
from fletcher_core import Embedder
from fletcher_core.longbow.drain import drain
from fletcher_core.longbow.sender import Sender
from fletcher_core.pipeline import MaterializeSettings, materialize
from fletcher_core.store import VectorStore

SETTINGS = MaterializeSettings(segment_rows=128, commit_seconds=0.5, delivery_timeout=20.0)


@dataclass(frozen=True)
class Case:
    """A fault.

    Args:
        name: for the table.
        engine: what is wrong with the engine, None for the engine as it is.
        before, during: done to the server before the run and, on a thread, during it; `during` ends the fault.
        after: done to the server after the run, to end the fault.
        quarantined: reason of the rows that may go there; "" when none may.
        everywhere: also the engine in float32, which is asked about vectors that are not sound, has the fault.
    """

    name: str
    engine: Faults | None = None
    before: Callable[[Server], None] | None = None
    during: Callable[[Server], None] | None = None
    after: Callable[[Server], None] | None = None
    quarantined: str = ""
    everywhere: bool = False


def _stall(server: Server) -> None:
    server.fault(stall_before_flush=True)


def _end_after(seconds: float) -> Callable[[Server], None]:
    def end(server: Server) -> None:
        time.sleep(seconds)
        server.fault()

    return end


def _start_after(seconds: float) -> Callable[[Server], None]:
    def start(server: Server) -> None:
        time.sleep(seconds)
        server.start()

    return start


def cases(folder: Path, stall: float) -> list[Case]:
    return [
        Case("none"),
        Case("allocation fails every 7th batch", Faults(allocation=7)),
        Case("engine raises every 7th batch", Faults(exception=7)),
        Case("engine hangs once", Faults(hang=9, once=str(folder / "hang"))),
        Case("engine aborts once", Faults(abort=9, once=str(folder / "abort"))),
        Case("engine aborts every 40th batch", Faults(abort=40)),
        Case("engine computes wrong vectors of 2 %", Faults(nan_share=0.02)),
        Case(
            "every engine computes NaN for 2 %", Faults(nan_share=0.02), quarantined="invalid_vector", everywhere=True
        ),
        Case("Longbow refuses connections", before=Server.stop, after=Server.start),
        Case("Longbow refuses, then is there", before=Server.stop, during=_start_after(3.0)),
        Case("Longbow resets mid-stream", before=lambda s: s.fault(unavailable_mid_stream=30), after=Server.fault),
        Case(f"Longbow stalls {stall:.0f} s", before=_stall, during=_end_after(stall)),
        Case("Longbow fails 30 % of calls", before=lambda s: s.fault(fail_share=0.3, fail_seed=1), after=Server.fault),
        Case("Longbow out of memory", before=lambda s: s.fault(resource_exhausted=True), after=Server.fault),
        Case("Longbow drops rows after its OK", before=lambda s: s.fault(drop_after_ok=True), after=Server.fault),
        Case("Longbow restarted empty", before=Server.wipe),
    ]


@dataclass
class Watch:
    """When the engine was seen to be replaced, and taken back; seconds of `time.monotonic`."""

    replaced_at: float = 0.0
    back_at: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self, embedder: Embedder) -> Iterator[None]:
        def look() -> None:
            while not self._over.wait(0.02):
                self.look(embedder)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def look(self, embedder: Embedder) -> None:
        if embedder.health.standing_in:
            self.replaced_at = self.replaced_at or time.monotonic()
            self.back_at = 0.0
        elif self.replaced_at and not self.back_at:
            self.back_at = time.monotonic()


def run_case(
    case: Case, notes: Notes, server: Server, store_folder: Path, plain: Embedder, threads: int
) -> dict[str, Any]:
    """What became of the rows, and when."""
    before = dict(notes.rows)
    notes.change(len(notes.rows) * 2 // 3, 20, 20)
    notes.write()
    rewritten = {id_: text for id_, text in notes.rows.items() if before.get(id_) != text}
    with broken(case.engine) if case.engine else nullcontext():
        embedder = failover_embedder(plain, threads, second_is_broken=case.everywhere)
        client = server.client()
        if case.before:
            case.before(server)
        during = threading.Thread(target=case.during or (lambda _: None), args=(server,))
        during.start()
        watch, began = Watch(), time.monotonic()
        with VectorStore.open(store_folder, collection=COLLECTION) as store:
            with watch.watching(embedder):
                report = materialize(notes.source, embedder=embedder, store=store, longbow=client, settings=SETTINGS)
            run_seconds = time.monotonic() - began
            during.join()
            if case.after:
                case.after(server)
            ended = time.monotonic()
            generation = store.current()
            assert generation is not None
            with Sender(generation, client) as sender:
                delivery = drain(sender, timeout=60.0)
            delivered_after = time.monotonic() - ended
            while embedder.health.standing_in and time.monotonic() - ended < 60.0:
                time.sleep(0.05)
            watch.look(embedder)
            aside = Counter(store.quarantine.read()["reason"].to_pylist())
            quarantined = set(store.quarantine.read()["id"].to_pylist())
            rows = {id_: text for id_, text in notes.rows.items() if id_ not in quarantined}
            books = check_books(rows, store, client, plain)
        embedder.close()
        client.close()
    due = chosen(rewritten, case.engine, plain) if case.engine and case.quarantined else set()
    right = set(aside) <= {case.quarantined} and quarantined == due
    well = not watch.replaced_at or bool(watch.back_at)
    return {
        "case": case.name,
        "rows": len(notes.rows),
        "embedded": report.embedded,
        "searchable": delivery.rows["searchable"],
        "quarantined": dict(aside),
        "retried": report.retried,
        "engine_failures": report.engine_failures,
        "standby_batches": report.standby_batches,
        "texts_per_s": round(report.texts_per_s, 1),
        "run_seconds": round(run_seconds, 2),
        "delivered_after": round(delivered_after, 2),
        "engine_back_after": round(watch.back_at - watch.replaced_at, 2) if watch.replaced_at and well else None,
        "accounted": books.balance and right and well and delivery.is_complete,
        "books": "" if books.balance else str(books),
    }


def chosen(rows: dict[str, str], faults: Faults, plain: Embedder) -> set[str]:
    """The ids of the rows whose texts an engine with these faults gives no vector."""
    batch = plain.encoder.encode(list(rows.values())).sequences
    return {id_ for number, id_ in enumerate(rows) if is_chosen(batch, number, faults.nan_share)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--stall", type=float, default=60.0, help="seconds that Longbow stalls")
    parser.add_argument("--only", default="", help="parts of the names of cases, with commas")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    found: list[dict[str, Any]] = []
    plain = Embedder.load(engine="cpu", threads=options.threads)
    for case in cases(Path("."), options.stall):
        if options.only and not any(part in case.name for part in options.only.split(",")):
            continue
        with TemporaryDirectory(prefix="fletcher-faults-") as folder:
            place = Path(folder)
            (case,) = [again for again in cases(place, options.stall) if again.name == case.name]
            notes = Notes(place / "notes.duckdb", random.Random(options.seed))
            notes.change(0, 0, options.rows)
            notes.write()
            server = Server(place / "longbow")
            with VectorStore.open(place / "store", collection=COLLECTION) as store, server.client() as client:
                materialize(notes.source, embedder=plain, store=store, longbow=client, settings=SETTINGS)
            found.append(run_case(case, notes, server, place / "store", plain, options.threads))
            server.stop()
        print(found[-1], flush=True)
    failed = [result["case"] for result in found if not result["accounted"]]
    keep("faults", {"seed": options.seed, "rows": options.rows, "threads": options.threads, "cases": found})
    print(f"{len(found)} cases, not accounted for: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

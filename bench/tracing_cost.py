"""What tracing costs: runs and calls without the SDK, with 1 % of the traces recorded, and with all of them exported.

Run: nice -n 19 .venv/bin/python bench/tracing_cost.py [--rows 3000] [--calls 300] [--rounds 9] [--json FILE]

Three processes, set up by OpenTelemetry's own environment variables, take turns in an order that changes from round to
round; the exporter sends to a collector in this process, which counts the requests. A run materializes a table of
--rows short texts anew; a call embeds one text under a span of its own, as a service does for a request. Ratios are
those of neighbours in a round, with the median's 95 % interval (bench/paired.py), of the wall clock and of the
processor time of the process, which holds on a shared machine too; an empty call is a span around nothing, without the
engine's noise. The target is 1 % at 1 %.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from paired import compare
from results import JSON_OPTION, Row, write_results

SAMPLED = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
SETTINGS = {
    "no SDK": {},
    "1 %": {**SAMPLED, "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "100 %": {**SAMPLED, "OTEL_TRACES_SAMPLER_ARG": "1"},
}


class Collector(BaseHTTPRequestHandler):
    """Takes whatever comes."""

    taken = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).taken += 1
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3000, help="of the table that a run materializes")
    parser.add_argument("--calls", type=int, default=300, help="that embed a text each")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", **JSON_OPTION)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.rows, options.calls)
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}"}
    workers = {
        name: start(options, {**variables, **endpoint} if variables else {}) for name, variables in SETTINGS.items()
    }
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(-1, options.rounds):
        for name in sorted(workers, key=lambda name: (turn + list(workers).index(name)) % len(workers)):
            figures = ask(workers[name])
            if turn >= 0:  # the first round warms up
                for what, seconds in figures.items():
                    times.setdefault((name, what), []).append(seconds)
    for worker in workers.values():
        worker.communicate("\n", timeout=60)
    write_results(options.json, "tracing_cost", table(times))
    print(f"the collector took {Collector.taken} requests")
    server.shutdown()


def table(times: dict[tuple[str, str], list[float]]) -> list[Row]:
    rows = []
    print(f"{'':<32}{'no SDK':>12}{'1 %':>12}{'ratio, 95 % interval':>28}{'100 %':>12}{'ratio, 95 % interval':>28}")
    for what in dict.fromkeys(what for _, what in times):
        line = f"{what:<32}{median(times['no SDK', what]):>12.4f}"
        for name in ("1 %", "100 %"):
            verdict = compare(times["no SDK", what], times[name, what])
            interval = f"{verdict.ratio:.4f} ({verdict.low:.4f} to {verdict.high:.4f})"
            line += f"{median(times[name, what]):>12.4f}{interval:>28}"
            rows.append(Row(f"{what}, {name}", median(times[name, what]), "s", peer="no SDK", ratio=verdict.ratio))
        print(line)
    return rows


def start(options: argparse.Namespace, variables: dict[str, str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, __file__, "--worker", f"--rows={options.rows}", f"--calls={options.calls}"]
    return subprocess.Popen(
        command, env={**environment, **variables}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask(worker: subprocess.Popen[str]) -> dict[str, float]:
    """One round of a worker."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("round\n")
    worker.stdin.flush()
    figures: dict[str, float] = json.loads(worker.stdout.readline())
    return figures


def work(rows: int, calls: int) -> None:
    """A process that measures when it is asked to."""
    import duckdb

    from fletcher_core import Embedder
    from fletcher_core.pipeline import materialize
    from fletcher_core.sources import DuckDBTable
    from fletcher_core.store import VectorStore
    from fletcher_core.telemetry.stage_spans import stages_of
    from fletcher_core.telemetry.tracing import span, start_tracing

    stop = start_tracing("bench")
    embedder = Embedder.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "db.duckdb"
        with duckdb.connect(str(path)) as connection:
            connection.execute(
                "CREATE TABLE notes AS SELECT i AS id, 'note ' || i || ' of a short text' AS text "
                f"FROM range({rows}) t(i)"
            )
        for number, line in enumerate(sys.stdin):
            if not line.strip():
                break
            figures: dict[str, float] = {}
            with VectorStore.open(Path(folder) / f"store{number}", collection="notes") as store:
                began, used = time.perf_counter(), time.process_time()
                materialize(DuckDBTable(path, "notes"), embedder=embedder, store=store)
                figures["a run, wall s"] = time.perf_counter() - began
                figures["a run, processor s"] = time.process_time() - used
            began, used = time.perf_counter(), time.process_time()
            for call in range(calls):
                with span("request"):
                    embedder.embed([f"request {call} of a short text"])
            figures["calls, wall s"] = time.perf_counter() - began
            figures["calls, processor s"] = time.process_time() - used
            used = time.thread_time()
            for _ in range(1000):
                with span("request"), stages_of():
                    pass
            figures["1,000 empty calls, processor s"] = time.thread_time() - used
            print(json.dumps(figures), flush=True)
    stop()


if __name__ == "__main__":
    main()

"""`python -m chaos.fuzz_server`: random and damaged protocol bytes at the embedded server, and back at our client.

A case is a burst of one kind: bytes on the port (HTTP/2 and a recorded conversation, damaged), Flight's own messages
with damaged Arrow IPC in them, calls of every kind with arguments of every kind, calls that end in the middle, many
connections; or our client against a server that lies. After each the server must run, answer, and have the rows that
it had; and no more memory, threads and files than a burst may leave. From the client only LongbowError may come.
Case n of a seed draws the same bytes everywhere: `--case n` runs it alone. The last line is JSON.
"""

import argparse
import contextlib
import hashlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from chaos.results import keep

_CASE_SECONDS = 90.0


@dataclass(frozen=True)
class Report:
    """A case that is through: what was wrong, if anything."""

    case: int
    kind: str
    said: list[str]


def run_cases(
    seed: int, first: int, seconds: float, *, cases: int | None = None, only: str = "", replay: Path | None = None
) -> list[Report]:
    """Run cases from `first` on for so many seconds, in processes of their own that may crash or hang.

    With `replay`, those of the files in that folder; `only` takes one kind of them.
    """
    reports: list[Report] = []
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0 and (cases is None or len(reports) < cases):
        command = [sys.executable, "-m", "chaos.server_driver", "--seed", str(seed), "--first", str(first)]
        command += ["--seconds", str(left), "--only", only]
        if replay is not None:
            command += ["--replay", str(replay)]
        if cases is not None:
            command += ["--cases", str(cases - len(reports))]
        reports += _drive(command)
        if not reports or reports[-1].kind == "end":
            return [report for report in reports if report.kind != "end"]
        first = reports[-1].case + 1
    return reports


def _drive(command: list[str]) -> list[Report]:
    """The reports of one driver; the last is "end" when it came to its end, else what became of it."""
    reports, begun = [], Report(-1, "start", [])
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert driver.stdout is not None
    assert driver.stderr is not None
    words: list[bytes] = []
    threading.Thread(target=lambda: words.extend(driver.stderr or []), daemon=True).start()
    lines = _lines(driver.stdout)
    try:
        while True:
            try:
                line = lines.get(timeout=_CASE_SECONDS)
            except queue.Empty:
                return [*reports, Report(begun.case, begun.kind, [f"hang: no end after {_CASE_SECONDS:.0f} s"])]
            if line is None:
                break
            report = Report(**json.loads(line))
            if report.said is None:
                begun = report
            else:
                reports.append(report)
        status = driver.wait(timeout=30)
        if status == 0:
            return [*reports, Report(-1, "end", [])]
        last = b"".join(words[-5:]).decode(errors="replace")[-600:]
        return [*reports, Report(begun.case, begun.kind, [f"crash: status {status}: {last}"])]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def _lines(stream: IO[bytes]) -> "queue.Queue[bytes | None]":
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def signature(kind: str, said: str) -> str:
    """Equal for findings that are probably the same one: the first words, without numbers and quoted names."""
    words = re.sub(r"[0-9]+|'[^']*'|\S*/\S*", "", said)[:90]
    return hashlib.sha256(f"{kind}{words}".encode()).hexdigest()[:10]


def main() -> int:
    """Exit status 1 when there are findings."""
    parser = argparse.ArgumentParser(prog="python -m chaos.fuzz_server", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--case", type=int, default=None, help="run this case alone")
    parser.add_argument("--only", default="", help="one kind: raw, messages, calls, cancelled, connections, client")
    parser.add_argument("--replay", type=Path, default=None, help="folder of kept cases that are run first")
    parser.add_argument("--save", type=Path, default=None, help="folder for the findings of this run")
    options = parser.parse_args()

    started = time.monotonic()
    kept = sorted(options.replay.glob("*.json")) if options.replay else []
    reports = run_cases(0, 0, 600.0, replay=options.replay) if kept else []
    if options.case is not None:
        reports += run_cases(options.seed, options.case, 120.0, cases=1, only=options.only)
    else:
        reports += run_cases(options.seed, 0, options.seconds, only=options.only)

    findings: dict[str, dict[str, Any]] = {}
    for report in reports:
        for said in report.said:
            name = signature(report.kind, said)
            if name not in findings:
                print(f"case {report.case} {report.kind}: {said}", file=sys.stderr, flush=True)
                findings[name] = {"case": report.case, "kind": report.kind, "said": said[:400], "times": 0}
            findings[name]["times"] += 1
    if options.save and findings:
        options.save.mkdir(parents=True, exist_ok=True)
        for name, finding in findings.items():
            saved = {"seed": options.seed, "only": options.only, **finding}
            (options.save / f"{finding['kind']}-{name}.json").write_text(json.dumps(saved, indent=1) + "\n")
    outcomes = Counter(f"{report.kind}{': finding' if report.said else ''}" for report in reports)
    summary = {"fuzz": "server", "seed": options.seed, "seconds": round(time.monotonic() - started, 1)}
    summary |= {"cases": len(reports), "kept": len(kept), "outcomes": dict(outcomes.most_common())}
    summary |= {"findings": list(findings.values())}
    keep("fuzz_server", summary)
    print(json.dumps(summary))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

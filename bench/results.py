"""What a benchmark leaves behind: one JSON file with the machine, the commit and its rows, the same keys everywhere.

    parser.add_argument("--json", **JSON_OPTION)
    write_results(options.json, "latency", [Row("1 caller", 41.0, "texts/s", p50=24.1, p99=31.0)])

`value` is better the larger it is, unless its unit is a time. `ratio` says how many times better than `peer` it is,
`p50` and `p99` are milliseconds, `roof` is the share of what the machine could do at most. A key that does not apply to
a row is not there.
"""

import json
import os
import platform
import resource
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

ROOT = Path(__file__).resolve().parents[1]


class _Option(TypedDict):
    type: type[Path]
    metavar: str
    help: str


JSON_OPTION: _Option = {"type": Path, "metavar": "FILE", "help": "also write the figures there, as JSON"}


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark, with what it is held against."""

    name: str
    value: float
    unit: str
    peer: str | None = None
    ratio: float | None = None
    p50: float | None = None
    p99: float | None = None
    roof: float | None = None


def write_results(path: Path | None, script: str, rows: Iterable[Row], **more: Any) -> None:
    """Writes the figures of one run to `path`, making its folder; does nothing without a path."""
    if path is None:
        return
    document = {
        "script": script,
        "machine": machine(),
        "commit": commit(),
        "rows": [{key: value for key, value in asdict(row).items() if value is not None} for row in rows],
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")


def machine() -> dict[str, str | int]:
    return {"cpu": cpu_model(), "cores": cores(), "python": platform.python_version()}


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident_bytes() -> int:
    """What this process holds of the machine's memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # macOS: the peak, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def commit() -> str:
    """The commit that is measured, with a mark if tracked files differ from it; "unknown" outside a clone."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

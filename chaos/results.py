"""Figures of a chaos script: printed as they come, kept as JSON for docs/reliability.md."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("CHAOS_RESULTS", "chaos-results"))


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write `chaos-results/NAME.json`, with when and where it was made."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = {"date": time.strftime("%Y-%m-%d"), "machine": _processor(), "cores": os.cpu_count()}
    (FOLDER / f"{name}.json").write_text(json.dumps({**made, **figures}, indent=2) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

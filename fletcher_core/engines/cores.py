"""How many cores there are for us: those that we may run on, and what share of them a container gives."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores that this process may run on. `taskset` gives fewer than the machine has, and so does a container's CPU
    limit, by time: as many threads as the machine has cores would use that up at once, and then all stand still."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min([allowed, *(math.ceil(share) for share in _shares())])


def _shares() -> Iterator[float]:
    """The limits, in cores, of the control groups that we are in (Linux); none where there is none."""
    try:
        lines = _OWN.read_text("utf-8").splitlines()
    except OSError:  # macOS
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = _GROUPS / "cpu" if controllers else _GROUPS
        # Of a container the path is "/" or one of the host's that is not to be seen in here: the top is its own then.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (share := _share(folder)):
                yield share


def _share(group: Path) -> float:
    """Time a period, of version 2 or 1 of control groups; 0 for no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text("utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text("utf-8") for name in ("quota", "period"))
        return 0.0 if quota == "max" else max(0.0, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such controller in this group
        return 0.0

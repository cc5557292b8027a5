"""What this process holds of the machine's memory."""

import os
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_memory() -> dict[str, int]:
    """Bytes: "resident" where the system says what that is now, else (macOS) "peak", what it was at most."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak": most if sys.platform == "darwin" else 1024 * most}
    return {"resident": pages * os.sysconf("SC_PAGE_SIZE")}

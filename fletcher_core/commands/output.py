"""What commands print: JSON for programs, lines and small tables for people."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One value on one line of standard output; dates and paths as text."""
    print(json.dumps(value, default=str, ensure_ascii=False))


def note(text: str) -> None:
    """A sentence on standard error, which is not part of the result."""
    print(f"fletcher: {text}", file=sys.stderr)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> list[str]:
    """Lines of a table in columns as wide as they need to be; the columns named in `right` are aligned there."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    aligned = [str.rjust if name in right else str.ljust for name in header]
    return [
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)).rstrip()
        for row in cells
    ]


def printable(line: str) -> str:
    """Ids and messages come out of the data: no line of theirs breaks ours, and none speaks to the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def named(names: Iterable[str]) -> str:
    """Partition keys and the like in a sentence; the empty one can be seen."""
    return ", ".join(name if name else repr(name) for name in sorted(names)) or "none"


def size(count: float) -> str:
    """Bytes for people, in powers of 1000: 91.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: 8.4 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: int, one: str, more: str) -> str:
    """`1 row waits`, `1,200 rows wait`."""
    return f"{count:,} {one if count == 1 else more}"

"""This working tree against an earlier commit, on this machine, now: has anything become slower beyond noise?

    make bench-compare               # or: .venv/bin/python bench/compare.py [--base HEAD~1] [--json FILE]

Checks the base out into a temporary git worktree and runs the short measurements of `bench/short_form.py` in a process
for each tree. They take turns, base new new base, so that what else the machine does hits both. Each pair gives a ratio
of times; printed are their median and its 95 % confidence interval (`bench/paired.py`). Processes are started anew
every few pairs, because two processes of the same code differ a little all their lives.

Exits with 1 only if the whole interval of a measurement lies beyond the limit, 20 % more time, or if the base can be
measured and this tree cannot. The extensions in C++ are built for the base only if their sources or their build differ.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from paired import FEWEST_PAIRS, Verdict, compare
from results import JSON_OPTION, ROOT, Row, cores, cpu_model, write_results
from short_form import MEASUREMENTS
from texts import first_texts
from trees import INSTALLED, Child, Tree, commit_of, measuring, native_folder, worktree

TEXTS = 2000
PAIRS = 12
LIMIT = 0.20
TURNS = ("base", "new", "new", "base")  # two pairs; whatever grows steadily meanwhile cancels out
TURNS_A_PROCESS = 2


@dataclass
class Series:
    """The times of both sides, in the order in which they were taken, and why one cannot be measured."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"base": [], "new": []})
    errors: dict[str, str] = field(default_factory=dict)

    def verdict(self) -> Verdict | None:
        return None if self.errors else compare(self.seconds["base"], self.seconds["new"])

    def fails(self, limit: float) -> bool:
        verdict = self.verdict()
        return verdict.regressed(limit) if verdict else list(self.errors) == ["new"]

    def words(self, limit: float) -> str:
        """What came out, for people."""
        verdict = self.verdict()
        if verdict is None:
            return "; ".join(f"cannot measure {side}: {error}" for side, error in self.errors.items())
        if not verdict.certain:
            return f"too few pairs to say (at least {FEWEST_PAIRS})"
        if verdict.regressed(limit):
            return f"REGRESSION beyond {limit:.0%}"
        return "slower" if verdict.slower else "faster" if verdict.faster else "no difference beyond noise"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="HEAD~1", metavar="REV", help="the commit to compare with (default HEAD~1)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"of each measurement, at most (default {PAIRS})")
    parser.add_argument(
        "--seconds-budget", type=float, default=75, help=f"take no more pairs after this, beyond {FEWEST_PAIRS}"
    )
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="may be repeated; all by default")
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    base = commit_of(options.base)
    if base is None:
        print(f"{options.base} is not in this clone (is it shallow, or the first commit?): nothing to compare with")
        return
    series = compared(base, options.only or list(MEASUREMENTS), options.pairs, options.seconds_budget)
    if series is None:
        print(f"the extensions of {options.base} cannot be built here: nothing to compare with")
        return
    report(f"{options.base}, {base[:12]}", series)
    write_results(options.json, "compare", result_rows(base, series), comparisons=comparisons(base, series))
    sys.exit(any(each.fails(LIMIT) for each in series.values()))


def compared(base: str, names: list[str], pairs: int, budget: float) -> dict[str, Series] | None:
    """Checks out `base` and measures both; None if its extensions cannot be built."""
    with tempfile.TemporaryDirectory(prefix="fletcher-compare-") as temporary, ExitStack() as stack:
        folder = Path(temporary).resolve()
        checkout = stack.enter_context(worktree(base, folder / "base"))
        native = native_folder(base, checkout, folder / "native")
        if native is None:
            return None
        texts = folder / "texts.json"
        texts.write_text(json.dumps(first_texts(TEXTS)), "utf-8")
        trees = {
            "base": Tree(checkout, native, folder / "of-base"),
            "new": Tree(ROOT, INSTALLED, folder / "of-new"),
        }
        return measure(trees, texts, names, pairs, time.monotonic() + budget)


def measure(trees: dict[str, Tree], texts: Path, names: list[str], pairs: int, deadline: float) -> dict[str, Series]:
    """Takes pairs until there are enough, or until the deadline if there are enough for an interval by then."""
    series = {name: Series() for name in names}
    taken, seconds = 0, 0.0
    while taken < pairs and (taken < FEWEST_PAIRS or time.monotonic() + seconds < deadline):
        with ExitStack() as stack:
            children = {side: stack.enter_context(measuring(tree, texts)) for side, tree in trees.items()}
            for child in children.values():
                child.check()
            take_turns(children, series, keep=False)
            for _ in range(TURNS_A_PROCESS):
                start = time.monotonic()
                take_turns(children, series)
                taken, seconds = taken + len(TURNS) // 2, time.monotonic() - start
                if taken >= pairs or (taken >= FEWEST_PAIRS and time.monotonic() + seconds > deadline):
                    break
    return series


def take_turns(children: dict[str, Child], series: dict[str, Series], keep: bool = True) -> None:
    """Two pairs of each measurement; or, not kept, one round of each side, which makes what it needs and warms it."""
    for name, each in series.items():
        for side in TURNS if keep else children:
            if each.errors.get(side) or (keep and each.errors):
                continue
            answer = children[side].seconds(name)
            if isinstance(answer, str):
                each.errors[side] = answer
            elif keep:
                each.seconds[side].append(answer)


def report(base: str, series: dict[str, Series]) -> None:
    pairs = max(len(each.seconds["new"]) for each in series.values())
    print(f"{cpu_model()}, {cores()} cores; this tree (new) against {base} (base), {pairs} pairs")
    print(f"{'':<18}{'base':>11}{'new':>11} {'':<12}{'time new / base, 95 % interval':>32}")
    for name, each in series.items():
        line = f"  {name:<16}"
        if verdict := each.verdict():
            base_shown, new_shown = (MEASUREMENTS[name].shown(median(each.seconds[side])) for side in ("base", "new"))
            line += f"{base_shown:>11,.4g}{new_shown:>11,.4g} {MEASUREMENTS[name].unit:<12}"
            line += f"{f'{verdict.ratio:.3f}x   {verdict.low:.3f} to {verdict.high:.3f}':>32}"
        print(f"{line}   {each.words(LIMIT)}", flush=True)


def result_rows(base: str, series: dict[str, Series]) -> list[Row]:
    rows = []
    for name, each in series.items():
        if verdict := each.verdict():
            value = MEASUREMENTS[name].shown(median(each.seconds["new"]))
            rows.append(Row(name, value, MEASUREMENTS[name].unit, peer=base[:12], ratio=1 / verdict.ratio))
    return rows


def comparisons(base: str, series: dict[str, Series]) -> dict[str, object]:
    """The statistics and all times, so that a doubtful result can be looked at."""
    return {
        "base": base,
        "limit": LIMIT,
        "measurements": {
            name: {
                **asdict(each),
                "result": each.words(LIMIT),
                "time_ratio": asdict(verdict) if (verdict := each.verdict()) else None,
            }
            for name, each in series.items()
        },
    }


if __name__ == "__main__":
    main()

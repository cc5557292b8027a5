"""The figures of the chaos scripts as Markdown, in the sections of docs/reliability.md.

python -m chaos.report             # after make chaos; from chaos-results/*.json
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos.results import FOLDER

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
_PART = re.compile(r"(Figures \(`chaos-results/(?P<name>\w+)\.json`\):\n).*?(?=\n## |\Z)", re.DOTALL)


def main() -> None:
    text = DOCUMENT.read_text()

    def filled(part: "re.Match[str]") -> str:
        write, names = _PARTS[part["name"]]
        files = [FOLDER / f"{name}.json" for name in names]
        if not all(file.exists() for file in files):
            return part[0]
        return f"{part[1]}\n{write(*(json.loads(file.read_text()) for file in files))}\n"

    DOCUMENT.write_text(_PART.sub(filled, text))


def _kills(found: dict[str, Any]) -> str:
    rows = "\n".join(f"| {what} | {count} |" for what, count in found["outcomes"].items())
    failed = found["failed_checks"]
    wrong = "; ".join(f"after {check['after']} kills: {check['books']}" for check in failed)
    return (
        f"{_where(found)}, seed {found['seed']}: **{found['kills']} kills in {found['seconds']:.0f} s; of "
        f"{found['checks']} comparisons with a clean embedding {found['checks'] - len(failed)} found 0 rows lost, 0 "
        f"doubled and 0 wrong vectors**{f' ({wrong})' if wrong else ''}. A run that nobody kills takes "
        f"{found['run_seconds']:.1f} s.\n\n| what was killed: how the run ended | runs |\n|---|---|\n{rows}"
    )


def _faults(found: dict[str, Any]) -> str:
    lines = [
        f"{_where(found)}, {found['rows']:,} rows, two thirds of them rewritten, seed {found['seed']}, engine on "
        f"{found['threads']} core(s).\n",
        "| fault | rows embedded | searchable in the end | set aside | by another engine | texts/s | engine back after "
        "| all delivered after | accounted for |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in found["cases"]:
        aside = ", ".join(f"{count} {reason}" for reason, count in case["quarantined"].items()) or "0"
        other = [f"{case['standby_batches']} batches"] if case["standby_batches"] else []
        other += [f"{case['retried']} texts"] if case["retried"] else []
        back = "" if case["engine_back_after"] is None else f"{case['engine_back_after']:.1f} s"
        lines.append(
            f"| {case['case']} | {case['embedded']} | {case['searchable']} | {aside} | {', '.join(other)} | "
            f"{case['texts_per_s']:.0f} | {back} | {case['delivered_after']:.1f} s | "
            f"{'yes' if case['accounted'] else 'NO'} |"
        )
    return "\n".join(lines)


def _soak(found: dict[str, Any]) -> str:
    faults = ", ".join(f"{name} ({count})" for name, count in sorted(found["faults"].items()))
    lines = [
        f"{_where(found)}, seed {found['seed']}: **{found['minutes']:.0f} minutes, {found['runs']:,} runs, "
        f"{found['embedded']:,} texts embedded at {found['texts_per_s']:.0f} texts/s, {sum(found['faults'].values())} "
        f"faults; the books in the end: {found['books']}; leaks: {', '.join(found['leaks']) or 'none'}**. The engine "
        f"failed {found['engine_failures']} times, another computed {found['standby_batches']:,} batches, and "
        f"{found['runs_with_rows_waiting']} runs ended with rows that waited for Longbow. Faults: {faults}.\n",
        "| medians of the four quarters | resident MB | open files | threads |",
        "|---|---|---|---|",
    ]
    for process, figures in found["medians_by_quarter"].items():
        cells = [" / ".join(f"{value:.0f}" for value in figures[name]) for name in ("rss_mb", "files", "threads")]
        lines.append(f"| {process} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _fuzz(*parts: dict[str, Any]) -> str:
    lines = [
        f"{_where(parts[0])}.\n",
        "| | seed | seconds | cases | findings | outcomes |",
        "|---|---|---|---|---|---|",
    ]
    for part in parts:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in part["outcomes"].items())
        findings = part["findings"] if isinstance(part["findings"], int) else len(part["findings"])
        lines.append(
            f"| {part['fuzz']} | {part['seed']} | {part['seconds']:.0f} | {part['cases']:,} | {findings} | {kinds} |"
        )
    return "\n".join(lines)


def _where(found: dict[str, Any]) -> str:
    return f"{found['date']}, {found['machine']}, {found['cores']} cores"


_PARTS: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "kills": (_kills, ("kills",)),
    "faults": (_faults, ("faults",)),
    "soak": (_soak, ("soak",)),
    "fuzz": (_fuzz, ("fuzz_loader", "fuzz_server", "fuzz_http")),
}

if __name__ == "__main__":
    main()

"""What 10^8 and 10^9 rows take, and what breaks first, from measured constants: the tables of docs/scale.md.

    .venv/bin/python bench/scale_model.py [--dimension 384] [--narrow FILE --wide FILE --partitioned FILE]

In: JSON of `bench/scale.py` at two dimensions, which give a row's cost as a part of its own and one for each element,
and of a run over 64 hash buckets; by default those in `bench/measured`. What is measured elsewhere stands in
`CONSTANTS`, each with its source. Out: Markdown. Costs are seconds of one core, which neighbours on the machine hardly
change. All of them are taken to be the same for each row, which 10^5 to 10^7 rows showed; where a cost grows with the
number of rows, that is a limit, and `limits` says at which number. The trivial engine's time is taken off, and that of
a real one stands beside it.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from results import ROOT

from fletcher_core.partition_run import SEGMENT_BYTES
from fletcher_core.run_settings import MaterializeSettings
from fletcher_core.store.compaction import files_to_merge
from fletcher_core.store.manifest import SEQUENCE_LIMIT
from fletcher_core.store.schema import segment_schema
from fletcher_core.store.segments import row_group_rows

MEASURED = ROOT / "bench" / "measured"
DAY, HOUR = 86_400.0, 3_600.0
SIZES = (10**7, 10**8, 10**9)


@dataclass(frozen=True)
class Constant:
    value: float
    unit: str
    source: str


CONSTANTS = {
    "CPU": Constant(337, "texts/s", "README.md: MiniLM in bf16, 55 tokens, two cores of an EPYC"),
    "H100": Constant(174_421, "texts/s", "README.md: MiniLM's shape, 77 tokens, tokenizing included"),
    "delivery": Constant(131_205, "rows/s", "docs/longbow.md: 384 dimensions, server and client on two cores"),
    "row group": Constant(20e-6, "s", "opening a segment file and looking for a label: 0.2 s with 10,000 row groups"),
    "manifest": Constant(0.067, "s", "`Manifest.undelivered` with 122,070 segments, asked twice for each batch"),
    "known": Constant(8e-8, "s", "`write_known_vectors` in a new process, for each of 2,000,000 stored rows"),
    "comparison": Constant(10e-9, "s", "a guess: a row's label in a filtered scan of Longbow's; not measured"),
    "mappings": Constant(65_530, "files", "Linux' default of vm.max_map_count"),
    "changed": Constant(0.01, "of the rows a day", "a supposition, and what bench/scale.py changes"),
    "memory": Constant(64e9, "bytes", "a supposition: the memory of one machine"),
    "disk": Constant(2e12, "bytes", "a supposition: the disk of one machine"),
}


@dataclass(frozen=True)
class Limit:
    """At `rows` something breaks, or takes longer than it may."""

    rows: float
    what: str
    answer: str


@dataclass(frozen=True)
class Linear:
    """Of a row: `fixed` and what each element of its vector adds."""

    fixed: float
    element: float

    def at(self, dimension: int) -> float:
        return self.fixed + self.element * dimension


class Model:
    """The costs of a row from two runs of `bench/scale.py` with one partition and one with hash buckets."""

    def __init__(self, narrow: dict[str, Any], wide: dict[str, Any], partitioned: dict[str, Any]) -> None:
        self._runs = [(document["settings"]["dimension"], document["runs"]) for document in (narrow, wide)]
        common = max(set(map(int, narrow["runs"])) & set(map(int, wide["runs"])))
        self._pair = [(dimension, steps_of(runs[str(common)])) for dimension, runs in self._runs]
        self.measured = {int(size): steps_of(steps) for size, steps in narrow["runs"].items()}
        self.rows = max(self.measured)
        self.largest = self.measured[self.rows]
        self.buckets = partitioned["settings"]["partitions"]
        (self._bucketed,) = map(steps_of, partitioned["runs"].values())

    def cost(self, step: str, process: str = "driver") -> Linear:
        """Core seconds of a row in a step, without the time that its trivial engine was busy."""
        return self._line(lambda steps: _core_seconds(steps[step], process) / steps[step]["rows"])

    def place(self, name: str) -> Linear:
        """Bytes of a row in a place once everything is embedded and compacted."""
        return self._line(lambda steps: steps["compact"]["places"][name] / steps["compact"]["places"]["segment_rows"])

    def _line(self, of: Any) -> Linear:
        (low, at_low), (high, at_high) = [(dimension, of(steps)) for dimension, steps in self._pair]
        element = (at_high - at_low) / (high - low)
        return Linear(at_low - element * low, element)

    @property
    def changed_row(self) -> float:
        """Core seconds of a row that changed, of both processes: found, embedded, sent, and the old one deleted."""
        few = self.largest["few"]
        return (_core_seconds(few, "driver") + _core_seconds(few, "server")) / float(few["rows"])

    @property
    def scratch(self) -> float:
        """Bytes of a row among a run's working files at their most."""
        return float(self.largest["embed"]["work_bytes"] / self.rows)

    @property
    def bucket_scan(self) -> float:
        """Core seconds that a hash bucket takes of each row of the source, also of the rows of other buckets."""
        again = self._bucketed["again"]
        return float(_core_seconds(again, "driver") / again["rows"] / self.buckets)

    def segments(self, rows: float, dimension: int) -> int:
        """Segments of that many rows."""
        of_bytes = SEGMENT_BYTES // (4 * dimension + 512)
        return math.ceil(rows / min(MaterializeSettings().segment_rows, of_bytes))

    @property
    def manifest_bytes(self) -> float:
        """Of a segment with its delivery."""
        places = self.largest["redeliver"]["places"]
        return float(places["manifest_bytes"] / places["manifest_segments"])

    @property
    def rows_of_a_batch(self) -> float:
        """Rows of one of the embedded server's files."""
        places = self.largest["redeliver"]["places"]
        return float(places["segment_rows"] / places["longbow_files"])


def steps_of(steps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in steps}


def _core_seconds(step: dict[str, Any], process: str) -> float:
    if process == "server":
        return float(step["server"]["cpu_seconds"])
    return float(step["cpu"] - step["figures"].get("stages", {}).get("compute", 0.0))


def amplification(days: int, share: float, segments: int) -> float:
    """How many times a row is written in `days` runs, each of which changes `share` of a table in so many segments, by
    the store's own choice of what to merge; 1 is once, as a segment. No merge makes a file larger than the table."""
    most, table = MaterializeSettings().max_segments, round(segments / share)  # sizes in full segments
    files, written = [table], 0
    for _ in range(days):
        files += [1] * segments
        written += segments
        sizes = {Path(str(at)): size * SEGMENT_BYTES for at, size in enumerate(files)}
        if chosen := files_to_merge(sizes, most):
            merged = min(table, sum(files[-len(chosen) :]))
            files[-len(chosen) :] = [merged]
            written += merged
    return written / (days * segments)


def flatness(model: Model) -> list[str]:
    """Markdown: what a row cost at each size that was measured, and what the largest took."""
    sizes = sorted(model.measured)
    largest = model.measured[sizes[-1]]
    table = [
        f"| core us a row | {' | '.join(map(power, sizes))} | rows/s by the clock | memory, server's | files open |",
        f"|---|{'---|' * len(sizes)}---|---|---|",
    ]
    for name, step in largest.items():
        each = [_both(model.measured[size][name]) for size in sizes]
        memory = " ".join(
            f"{step[process]['private_bytes'] / 2**20:,.0f}"
            for process in ("driver", "server")
            if step[process]["private_bytes"]
        )
        table.append(
            f"| {name} | {' | '.join(f'{cost:,.2f}' for cost in each)} | {step['rows'] / step['seconds']:,.0f} "
            f"| {memory.replace(' ', ', ')} MiB | {step['driver']['open_files']} |"
        )
    return table


def busy(model: Model) -> list[str]:
    """Markdown: how long each stage of the first run was busy, by the clock."""
    names = [name for name, seconds in model.largest["embed"]["figures"]["stages"].items() if seconds]
    table = [f"| busy, us a row | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for size, steps in sorted(model.measured.items()):
        seconds = steps["embed"]["figures"]["stages"]
        table.append(f"| {power(size)} rows | {' | '.join(f'{seconds[name] * 1e6 / size:.2f}' for name in names)} |")
    return table


def _both(step: dict[str, Any]) -> float:
    """Core us of a row, of both processes, the trivial engine's among them."""
    return float(step["cpu"] + step["server"]["cpu_seconds"]) * 1e6 / float(step["rows"])


def stages(model: Model, dimension: int) -> list[str]:
    """Markdown: what each stage costs a row, and how long one core, engine or server takes for each size."""
    costs = {
        "first run: all but the engine": model.cost("embed").at(dimension),
        "run without changes": model.cost("again").at(dimension),
        "run with 1 % changed, delivered": model.changed_row * CONSTANTS["changed"].value,
        "delivery, Fletcher's side": model.cost("deliver").at(dimension),
        "delivery, the embedded server's side": model.cost("deliver", "server").at(dimension),
        "compaction of everything": model.cost("compact").at(dimension),
        "an engine on 2 cores": 1 / CONSTANTS["CPU"].value,
        "an engine on an H100": 1 / CONSTANTS["H100"].value,
    }
    table = [f"| | us a row | {' | '.join(power(size) for size in SIZES)} |", "|---|---|---|---|---|"]
    for name, cost in costs.items():
        table.append(f"| {name} | {cost * 1e6:,.1f} | {' | '.join(span(cost * size) for size in SIZES)} |")
    return table


def workers(model: Model, dimension: int) -> list[str]:
    """Markdown: the largest size on several workers, each with an engine and a core for all else."""
    rows, counts = SIZES[-1], (1, 4, 16, 64)
    table = [f"| {power(rows)} rows, workers | {' | '.join(map(str, counts))} |", "|---|---|---|---|---|"]
    for name in ("CPU", "H100"):
        slowest = max(1 / CONSTANTS[name].value, model.cost("embed").at(dimension))
        table.append(f"| first run, {name} | {' | '.join(span(rows * slowest / count) for count in counts)} |")
    sent = span(rows / CONSTANTS["delivery"].value)
    return [*table, f"| delivery to one server | {' | '.join(sent for _ in counts)} |"]


def places(model: Model, dimension: int) -> list[str]:
    """Markdown: what lies where."""
    per_row = {
        "scratch files of the first run": model.scratch,
        "segments": model.place("segment_bytes").at(dimension),
        "ledger": model.place("ledger_bytes").at(dimension),
        "embedded server's files": model.place("longbow_bytes").at(dimension),
        "Longbow's memory, without its index": model.place("longbow_bytes").at(dimension),
    }
    table = [f"| | bytes a row | {' | '.join(power(size) for size in SIZES)} |", "|---|---|---|---|---|"]
    for name, cost in per_row.items():
        table.append(f"| {name} | {cost:,.0f} | {' | '.join(size_of(cost * size) for size in SIZES)} |")
    counts = [model.segments(size, dimension) for size in SIZES]
    manifest = [size_of(count * model.manifest_bytes) for count in counts]
    table.append(f"| segments, each a row of the manifest | | {' | '.join(f'{count:,}' for count in counts)} |")
    table.append(f"| manifest | {model.manifest_bytes:,.0f} a segment | {' | '.join(manifest)} |")
    used = [f"{100 * size / SEQUENCE_LIMIT:.1f} %" for size in SIZES]
    table.append(f"| sequences used by one embedding of all | | {' | '.join(used)} |")
    return table + amplifications(model, dimension)


def limits(model: Model, dimension: int) -> list[Limit]:
    """What breaks, the first first."""
    value = {name: constant.value for name, constant in CONSTANTS.items()}
    segment = MaterializeSettings().segment_rows
    row_group = row_group_rows(segment_schema(dimension, pa.schema([]), "float32"))
    send = model.cost("deliver").at(dimension)
    disk, memory = size_of(value["disk"]), size_of(value["memory"])
    side_by_side = "partitions of about 10^7 rows, several at a time"
    found = {
        f"the engine on 2 cores takes a day, {value['CPU']:.0f} texts/s": (
            DAY * value["CPU"],
            "a GPU, or more machines: partitions, Ray",
        ),
        f"rows fill Longbow's memory of {memory}, its index not counted": (
            value["memory"] / model.place("longbow_bytes").at(dimension),
            "a server for some partitions each; a smaller dimension; `fp16` where the server searches it",
        ),
        "a first run has more than 1,024 files until it merges them: who opens all needs a higher `ulimit -n`": (
            1024 * segment,
            side_by_side,
        ),
        "reading back takes an hour of a real Longbow's scans, as each looks at all rows (guessed: 10 ns a row)": (
            math.sqrt(2 * HOUR * segment / value["comparison"]),
            "a collection for some partitions each, so a dataset each",
        ),
        "delivery of a merged file takes twice the time: each of its segments reads the footer of the whole": (
            send * segment / value["row group"] * row_group,
            side_by_side,
        ),
        "the embedded server maps more files than Linux allows": (
            value["mappings"] * model.rows_of_a_batch,
            "a real Longbow: the embedded one is for development",
        ),
        "a day's changes take an hour, most of it calls that delete what was replaced": (
            HOUR / value["changed"] / model.changed_row,
            "`SenderSettings(retire_stale=False)`: Fletcher's own search leaves such rows out anyway",
        ),
        "runs of all partitions of 10^7 rows, each looking for known texts in all others, take an hour": (
            math.sqrt(HOUR * 10**7 / value["known"]),
            "several partitions in one run, which remembers them; a collection for some partitions each",
        ),
        f"the merge of a partition's files, beside them, fills a disk of {disk}": (
            value["disk"] / model.place("segment_bytes").at(dimension) / 2,
            f"{side_by_side}; object storage",
        ),
        "2^32 sequences end after a year of such changes and one new model": (
            SEQUENCE_LIMIT / (2 + 365 * value["changed"]),
            "a store for some partitions each",
        ),
        f"`fletcher reconcile`, with 24 bytes a row, fills a memory of {memory}": (
            value["memory"] / 24,
            "a store for some partitions each",
        ),
        "100 hash buckets take a day: each reads the whole source": (
            DAY / model.bucket_scan / 100,
            "partition by a stored column, best by the folders of the Parquet files",
        ),
        "one H100 takes a day": (DAY * value["H100"], "several GPUs, Ray"),
        "all but the engine takes a core a day": (
            DAY / model.cost("embed").at(dimension),
            "several partitions, or Ray",
        ),
        "looking for what to send takes as long as sending it": (
            10**9 * segment * 8 * send / (2 * value["manifest"]),
            "a store for some partitions each",
        ),
    }
    return sorted((Limit(rows, what, answer) for what, (rows, answer) in found.items()), key=lambda limit: limit.rows)


def limit_table(found: list[Limit]) -> list[str]:
    return [
        "| at rows | what | what holds |",
        "|---|---|---|",
        *(f"| {limit.rows:.1e} | {limit.what} | {limit.answer} |" for limit in found),
    ]


def amplifications(model: Model, dimension: int) -> list[str]:
    """Markdown: what a year of daily changes makes of one written row."""
    changed = CONSTANTS["changed"].value
    times = [amplification(365, changed, model.segments(size * changed, dimension)) for size in SIZES]
    return [f"| a changed row is written, times | | {' | '.join(f'{number:.1f}' for number in times)} |"]


def power(size: int) -> str:
    return f"10^{round(math.log10(size))}"


def span(seconds: float) -> str:
    for unit, length in (("days", DAY), ("h", HOUR), ("min", 60.0)):
        if seconds >= 2 * length or (unit == "min" and seconds >= 100):
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def size_of(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.3g} {unit}"
    return f"{size:,.0f} bytes"


def measured(narrow: Path, wide: Path, partitioned: Path) -> Model:
    return Model(*(json.loads(path.read_text("utf-8")) for path in (narrow, wide, partitioned)))


def tables(model: Model, dimension: int) -> dict[str, list[str]]:
    return {
        "flatness": flatness(model),
        "busy": busy(model),
        "stages": stages(model, dimension),
        "workers": workers(model, dimension),
        "places": places(model, dimension),
        "limits": limit_table(limits(model, dimension)),
        "constants": [
            "| constant | | source |",
            "|---|---|---|",
            *(f"| {name} | {c.value:g} {c.unit} | {c.source} |" for name, c in CONSTANTS.items()),
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--narrow", type=Path, default=MEASURED / "scale-64.json")
    parser.add_argument("--wide", type=Path, default=MEASURED / "scale-384.json")
    parser.add_argument("--partitioned", type=Path, default=MEASURED / "scale-buckets.json")
    options = parser.parse_args()
    model = measured(options.narrow, options.wide, options.partitioned)
    for name, lines in tables(model, options.dimension).items():
        print(f"{name}\n", *lines, "", sep="\n")


if __name__ == "__main__":
    main()

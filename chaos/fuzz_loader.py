"""`python -m chaos.fuzz_loader`: damaged model folders in; each must load and give finite vectors, or be refused well.

Every case is a fork that loads one folder and embeds a few texts. Allowed are vectors, and a FletcherError that names
the file. Findings are another exception, a crash, a hang, memory without bound, and vectors that are not finite. Case
n of a seed is the same on every machine: `--case n` runs it alone and shows what it changed. The last line is JSON.
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tokenizers  # noqa: F401  (imported before the forks, like all that a case needs)

import fletcher_core.engines.openvino  # noqa: F401
from chaos.forked import Outcome, run_forked
from chaos.mutations import any_value, mutate, mutate_bytes, mutate_value, write_json
from chaos.results import keep
from chaos.tiny_models import BASES, Files
from fletcher_core import Embedder
from fletcher_core.errors import FletcherError, ModelError

TEXTS = ["the quick brown fox", "", "\x01\x02\u200b", "Ünïcödé 北京 🙂", "a " * 200, "[CLS] [MASK] ##x", "\u0301" * 50]
GOOD = ("works", "refused")
_CASE_SECONDS = 20.0
_CASE_BYTES = 2**30
_MESSAGE_CHARACTERS = 2000
_SAVED_BYTES = 20_000
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "", "X", 3, None)


def damaged(case: int, seed: int, bases: dict[str, Files]) -> tuple[str, Files]:
    """The base of a case, and those of its files that are changed; an empty file name is never there."""
    random = Random(f"{seed}:{case}")
    base = random.choices(list(bases), weights=[3, 1, 1])[0]
    files = dict(bases[base])
    changed: Files = {}
    weights = [4 if name in ("config.json", "tokenizer.json", "model.safetensors") else 1 for name in files]
    for name in dict.fromkeys(random.choices(list(files), weights, k=random.choice((1, 1, 1, 2)))):
        if name == "model.safetensors":
            changed[name] = _mutate_safetensors(files[name], random)
        elif random.random() < 0.02:
            changed[name] = random.choice((b"", b"\x80\x04N.", random.randbytes(100), files["model.safetensors"]))
        else:
            changed[name] = mutate(files[name], random)
    return base, changed


def _mutate_safetensors(data: bytes, random: Random) -> bytes:
    """Lengths, header, offsets, types and shapes, and the numbers themselves."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = random.randrange(9)
    name = random.choice([key for key in header if key != "__metadata__"])
    tensor = header[name]
    begin, end = tensor["data_offsets"]
    if kind == 0:
        return mutate_bytes(data, random)
    if kind == 1:
        wrong = random.choice((0, 1, length - 1, length + 1, len(data), 2**32, 2**63, 2**64 - 1, 10**8, 10**8 + 1))
        return struct.pack("<Q", wrong) + data[8:]
    if kind == 2:
        tensor["dtype"] = random.choice(_DTYPES)
    elif kind == 3:
        sizes = (0, 1, -1, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, 1.5, None, "1")
        shape = list(tensor["shape"])
        shape[random.randrange(len(shape))] = random.choice(sizes)
        tensor["shape"] = random.choice((shape, shape[:-1], [*shape, 1], [], [random.choice(sizes)], shape[::-1]))
    elif kind == 4:
        ends = (begin, end, 0, len(body), len(body) + 1, -1, 2**63, 2**64 - 1, begin + 1, end - 4)
        tensor["data_offsets"] = random.choice(
            ([random.choice(ends), random.choice(ends)], [begin], [], None, [0, 0, 0])
        )
    elif kind == 5:
        item = {"F32": ("<f", 4), "F16": ("<e", 2)}[tensor["dtype"]]
        value = struct.pack(item[0], random.choice((float("nan"), float("inf"), -float("inf"), 60000.0, 1e-7)))
        if random.random() < 0.5:
            body = body[:begin] + value * ((end - begin) // item[1]) + body[end:]
        else:
            place = begin + random.randrange((end - begin) // item[1]) * item[1]
            body = body[:place] + value + body[place + item[1] :]
    elif kind == 6:
        other = random.choice([key for key in header if key != "__metadata__"])
        header[name], header[other] = header[other], header[name]
    elif kind == 7:
        header = mutate_value(header, random)
        if random.random() < 0.3 and isinstance(header, dict):
            header["__metadata__"] = any_value(random)
    else:
        del header[name]
        if random.random() < 0.7:  # consistently, so that the file itself is valid
            body = body[:begin] + body[end:]
            for rest in header.values():
                if isinstance(rest, dict) and rest.get("data_offsets", [0])[0] >= end:
                    rest["data_offsets"] = [offset - (end - begin) for offset in rest["data_offsets"]]
    text = write_json(header, random)
    return struct.pack("<Q", len(text)) + text + body


def load_and_embed(files: Files, engine: str) -> tuple[str, str]:
    """What comes of the folder: ("works", ""), ("refused", the message), or a finding."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-loader-"))
    try:
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        return _attempt(folder, engine)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _attempt(folder: Path, engine: str) -> tuple[str, str]:
    try:
        embedder = Embedder.load(folder, engine=engine, threads=1)  # type: ignore[arg-type]
        vectors = embedder.embed(TEXTS)
    except FletcherError as error:
        said = str(error)
        if not said or len(said) > _MESSAGE_CHARACTERS:
            return "message", f"{type(error).__name__} of {len(said)} characters: {said[:200]}"
        if isinstance(error, ModelError) and str(folder) not in said:
            return "message", f"names no file: {said}"
        return "refused", f"{type(error).__name__}: {said}"
    except BaseException as error:  # noqa: BLE001  (a Rust panic is no Exception)
        return "exception", f"{type(error).__name__}: {str(error)[:500]} {_where(error)}"
    if vectors.shape != (len(TEXTS), embedder.dimension) or not np.isfinite(vectors).all():
        return "vectors", f"shape {vectors.shape}, finite {np.isfinite(vectors).all()}"
    return "works", ""


def _where(error: BaseException) -> str:
    trace, last = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "fletcher_core" in file:
            last = f"at {Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return last


def difference(before: bytes, after: bytes) -> dict[str, Any]:
    """What `after` has instead of the middle of `before`, so that one case is a small file."""
    start = _shared(before, after)
    end = _shared(before[start:][::-1], after[start:][::-1])
    middle = after[start : len(after) - end]
    text = {"text": middle.decode("ascii")} if middle.isascii() else {"base64": base64.b64encode(middle).decode()}
    return {"start": start, "end": end, **text}


def _shared(left: bytes, right: bytes) -> int:
    """Bytes at the beginning of both."""
    length = min(len(left), len(right))
    unequal = np.flatnonzero(np.frombuffer(left[:length], np.uint8) != np.frombuffer(right[:length], np.uint8))
    return int(unequal[0]) if len(unequal) else length


def restored(before: bytes, saved: dict[str, Any]) -> bytes:
    """The other way round."""
    middle = saved["text"].encode() if "text" in saved else base64.b64decode(saved["base64"])
    return before[: saved["start"]] + middle + before[len(before) - saved["end"] :]


def save(folder: Path, outcome: Outcome, seed: int, base: str, before: Files, changed: Files) -> Path:
    """The case as a JSON file under the name of its words; without its bytes where they are many."""
    saved: dict[str, Any] = {"seed": seed, "case": outcome.case, "was": outcome.kind, "said": outcome.detail[:300]}
    saved |= {"base": base, "files": {name: difference(before[name], data) for name, data in changed.items()}}
    if len(json.dumps(saved)) > _SAVED_BYTES:
        del saved["files"]
    path = folder / f"{outcome.kind}-{_signature(outcome)}.json"
    path.write_text(json.dumps(saved, indent=1) + "\n")
    return path


def _signature(outcome: Outcome) -> str:
    """Equal for findings that are probably the same one: their words without numbers."""
    words = "".join(letter for letter in outcome.detail.split("\n")[0][:160] if not letter.isdigit())
    where = outcome.detail.rpartition(" at ")[2] if outcome.kind == "exception" else ""
    return hashlib.sha256(f"{words[:40]}{where}".encode()).hexdigest()[:10]


def main() -> int:
    """Exit status 1 when there are findings."""
    parser = argparse.ArgumentParser(prog="python -m chaos.fuzz_loader", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--case", type=int, default=None, help="run this case alone and show its changes")
    parser.add_argument("--replay", type=Path, default=None, help="folder of kept cases that are run first")
    parser.add_argument("--save", type=Path, default=None, help="folder for the findings of this run")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--case-seconds", type=float, default=_CASE_SECONDS)
    options = parser.parse_args()

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    bases = {name: make() for name, make in BASES.items()}
    engines = ["openvino", "native"] if _native_runs() else ["openvino"]
    kept = sorted(options.replay.glob("*.json")) if options.replay else []
    started = time.monotonic()

    def numbers() -> Iterator[int]:
        if options.case is not None:
            yield options.case
            return
        yield from range(-len(kept), 0)
        for case in count():
            if time.monotonic() - started > options.seconds:
                return
            yield case

    def files_of(case: int) -> tuple[str, Files]:
        if case >= 0:
            return damaged(case, options.seed, bases)
        saved = json.loads(kept[case].read_text())
        if "files" not in saved:
            return damaged(saved["case"], saved["seed"], bases)
        return saved["base"], {n: restored(bases[saved["base"]][n], each) for n, each in saved["files"].items()}

    def run(case: int) -> tuple[str, str]:
        base, changed = files_of(case)
        return load_and_embed(bases[base] | changed, engines[case % len(engines)])

    kinds: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    signatures: set[str] = set()
    for outcome in run_forked(
        numbers(), run, workers=options.workers, seconds=options.case_seconds, memory=_CASE_BYTES
    ):
        kinds[outcome.kind if outcome.kind != "refused" else f"refused: {outcome.detail.split(':')[0]}"] += 1
        if options.case is not None:
            _show(outcome, *files_of(outcome.case), bases)
        if outcome.kind in GOOD:
            continue
        name = kept[outcome.case].name if outcome.case < 0 else ""
        signature = f"{outcome.kind}-{_signature(outcome)}"
        if signature in signatures and not name:
            continue
        signatures.add(signature)
        findings.append({"case": outcome.case, "kept": name, "kind": outcome.kind, "said": outcome.detail[:300]})
        print(f"case {outcome.case} {name} {outcome.kind}: {outcome.detail}", file=sys.stderr, flush=True)
        if options.save and outcome.case >= 0:
            options.save.mkdir(parents=True, exist_ok=True)
            base, changed = files_of(outcome.case)
            save(options.save, outcome, options.seed, base, bases[base], changed)
    summary = {"fuzz": "loader", "seed": options.seed, "seconds": round(time.monotonic() - started, 1)}
    summary |= {"cases": sum(kinds.values()), "kept": len(kept), "outcomes": dict(kinds.most_common())}
    summary |= {"findings": findings}
    keep("fuzz_loader", summary)
    print(json.dumps(summary))
    return 1 if findings else 0


def _native_runs() -> bool:
    try:
        from fletcher_core.engines.native import _encoder
    except ImportError:
        return False
    return bool(_encoder.supported())


def _show(outcome: Outcome, base: str, changed: Files, bases: dict[str, Files]) -> None:
    print(f"case {outcome.case}, a {base}: {outcome.kind} {outcome.detail} ({outcome.seconds:.2f} s)")
    for name, data in changed.items():
        print(name, str(difference(bases[base][name], data))[:2000])


if __name__ == "__main__":
    sys.exit(main())

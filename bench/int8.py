"""What int8 buys on the CPU, and what it costs: texts/s beside the engines in bfloat16, cosine and recall to float32.

Run: .venv/bin/python bench/int8.py [--texts N] [--timed N] [--rounds N] [--json FILE]

Rounds alternate between the engines, on the same tokens in each one's own batches. Rates are the best round's by the
clock; ratios are medians over rounds of processor time, which holds on a shared machine. Recall: how many of the ten
nearest neighbours by float32 vectors are among the ten by int8 vectors, for the first 1,000 texts among all.
"""

import argparse
import time
from collections import defaultdict
from statistics import median

import numpy as np
from results import JSON_OPTION, Row, write_results
from texts import mixed_texts

from fletcher_core import Embedder
from fletcher_core.engines.native.engine import supported
from fletcher_core.tokens import TokenBatch

QUERIES = 1000
NEIGHBOURS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=4000, help="texts for cosine and recall")
    parser.add_argument("--timed", type=int, default=300, help="texts of a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    texts = mixed_texts(options.texts)
    embedders = {"OpenVINO int8": Embedder.load(precision="int8")}
    floats = Embedder.load(engine="openvino")
    embedders[f"OpenVINO {floats.engine.precision}"] = floats
    if supported(floats.package.architecture):
        embedders["native bf16"] = Embedder.load(engine="native")
    rows = speeds(embedders, texts[: options.timed], options.rounds)
    rows += quality(embedders, texts)
    write_results(options.json, "int8", rows)


def speeds(embedders: dict[str, Embedder], texts: list[str], rounds: int) -> list[Row]:
    """A line for each engine; the ratio says how many times faster int8 is."""
    int8, *_ = embedders
    sequences = embedders[int8].encoder.encode(texts).sequences
    seconds, work = defaultdict(list), defaultdict(list)
    for turn in range(rounds + 1):
        for name, embedder in embedders.items():
            clock, processor = time.perf_counter(), time.process_time()
            run(embedder, sequences)
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - clock)
                work[name].append(time.process_time() - processor)
    rows = []
    for name in embedders:
        rate = len(texts) / min(seconds[name])
        ratio = median(theirs / ours for theirs, ours in zip(work[name], work[int8], strict=True))
        print(f"{name:<16}{rate:8.0f} texts/s   int8 / it: {ratio:.2f}x", flush=True)
        rows.append(Row(name, rate, "texts/s", int8, 1 / ratio))
    return rows


def run(embedder: Embedder, sequences: TokenBatch) -> None:
    batches = (sequences.take(rows) for rows in embedder.engine.batching.plan(sequences.lengths))
    for _ in embedder.engine.run(batches):
        pass


def quality(embedders: dict[str, Embedder], texts: list[str]) -> list[Row]:
    """Cosine and recall of each engine to the vectors of float32."""
    exact = Embedder.load(precision="fp32").embed(texts)
    wanted = nearest(exact)
    rows = []
    for engine, embedder in embedders.items():
        vectors = embedder.embed(texts)
        cosines = np.einsum("nd,nd->n", exact, vectors)
        found = zip(nearest(vectors), wanted, strict=True)
        recall = np.mean([len(np.intersect1d(*pair)) / NEIGHBOURS for pair in found])
        for name, value in (("mean cosine", cosines.mean()), ("least cosine", cosines.min()), ("recall@10", recall)):
            print(f"{engine}, {name} to fp32: {value:.5f}", flush=True)
            rows.append(Row(f"{engine}, {name} to fp32", float(value), ""))
    return rows


def nearest(vectors: np.ndarray) -> np.ndarray:
    """Rows of the ten nearest other vectors, for each of the first 1,000."""
    scores = vectors[:QUERIES] @ vectors.T
    np.fill_diagonal(scores, -1)
    return np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


if __name__ == "__main__":
    main()

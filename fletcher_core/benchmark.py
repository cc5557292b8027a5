"""How fast a loaded model is on this machine: texts in, rates and latencies out. No timings of single stages."""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import numpy as np

from fletcher_core.batching import WINDOW
from fletcher_core.embedder import Embedder
from fletcher_core.tokens import TokenBatch, cumulative

MOST_LATENCIES = 200

# Sentences of the kinds of texts that tables hold: reviews, tickets, products, articles.
_SENTENCES = (
    "The parcel arrived two days late and the box was torn at one corner.",
    "Great value for the price, I would buy it again.",
    "After the update the application closes as soon as I open the settings.",
    "Stainless steel bottle with a double wall, 750 ml, keeps drinks cold for a day.",
    "Our customer cannot sign in since her account was moved to the new region.",
    "The committee will publish its report on river water quality in autumn.",
    "Delivery was quick, but two of the six glasses were broken.",
    "The room was clean and quiet; breakfast could have been better.",
    "Please cancel my subscription at the end of the month and confirm it in writing.",
    "The engine makes a grinding noise when the car turns left at low speed.",
    "Researchers measured the thickness of the ice at forty places along the coast.",
    "This jacket runs small, so order one size larger than usual.",
    "An error 504 is returned whenever the export has more than a million rows.",
    "Slice the onions thinly and let them soften over a low flame for ten minutes.",
    "The court decided that the contract had been void from the beginning.",
    "Battery life is about nine hours with the screen at half brightness.",
    "The museum opens at ten, and on Thursdays it stays open until nine in the evening.",
    "Sales grew by seven per cent in the second quarter, mostly in the north.",
    "My invoice shows an amount that I did not order; could you correct it?",
    "Photosynthesis turns light into chemical energy that a plant can store.",
)
_SENTENCES_MEDIAN, _SENTENCES_SPREAD, _MOST_SENTENCES = 2.5, 0.8, 30


@dataclass(frozen=True)
class Throughput:
    """Full batches: `texts` and `tokens` (none of padding) went through in `seconds`."""

    texts: int
    tokens: int
    seconds: float

    @property
    def texts_per_second(self) -> float:
        return self.texts / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Latency:
    """Of one short text at a time, in seconds, over `calls`."""

    p50: float
    p99: float
    calls: int


def realistic_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of one to thirty sentences, most of them short, no two alike."""
    chance = random.Random(seed)
    texts = []
    for number in range(count):
        length = round(chance.lognormvariate(math.log(_SENTENCES_MEDIAN), _SENTENCES_SPREAD))
        sentences = chance.choices(_SENTENCES, k=max(1, min(_MOST_SENTENCES, length)))
        texts.append(" ".join([*sentences, f"Reference {number}."]))
    return texts


def text_throughput(
    embedder: Embedder, texts: Sequence[str], seconds: float, progress: Callable[[int], None] | None = None
) -> Throughput:
    """The rate of tokenizing and computing `texts` over and over for about so many seconds, after a first batch.

    Args:
        progress: called with the sequences that are through so far, after each batch.
    """
    embedder.embed(list(texts[:8]))  # what is compiled or allocated at first
    through, computed, tokens = 0, 0, 0
    started = time.perf_counter()

    def windows() -> Iterator[tuple[None, list[str]]]:
        # At first a few: how fast the machine is shows only then, and a window is computed whole.
        size = min(64, len(texts))
        at = 0
        while time.perf_counter() - started < seconds:
            yield None, list(texts[at : at + size])
            at = (at + size) % len(texts) if at + size < len(texts) else 0
            rate = through / max(time.perf_counter() - started, 1e-3)
            size = max(64, min(WINDOW, len(texts), int(rate * seconds / 10)))

    def batch_done(sequences: int) -> None:
        nonlocal through
        through += sequences
        if progress is not None:
            progress(through)

    elapsed = math.inf
    for _, result in embedder.stream(windows(), on_batch=batch_done):
        computed += len(result.sound)
        tokens += result.computed_tokens
        elapsed = time.perf_counter() - started
    return Throughput(computed, tokens, elapsed)


def engine_throughput(embedder: Embedder, length: int, seconds: float) -> tuple[Throughput, int]:
    """The engine alone on random tokens, `length` a text, and the tokens of a batch."""
    engine, count = embedder.engine, 4096
    ids = np.random.default_rng(0).integers(0, embedder.package.architecture.vocab_size, count * length)
    texts = TokenBatch(ids.astype(np.int32), cumulative(np.full(count, length)))
    batches = [texts.take(rows) for rows in engine.batching.plan(texts.lengths)]
    for _ in engine.run(batches[:2]):
        pass
    computed, started, elapsed = 0, time.perf_counter(), math.inf
    for vectors in engine.run(_endless(batches, started, seconds)):
        computed += len(vectors)
        elapsed = time.perf_counter() - started
    budget = getattr(engine, "budget", None)
    size = budget.current if budget is not None else getattr(engine, "token_budget", len(batches[0].ids))
    return Throughput(computed, computed * length, elapsed), int(size)


def single_text_latency(
    embedder: Embedder, text: str, seconds: float, progress: Callable[[int], None] | None = None
) -> Latency:
    """Of `embed` with one text, over at most `MOST_LATENCIES` calls in about so many seconds, after a few untimed."""
    for _ in range(3):
        embedder.embed([text])
    latencies: list[float] = []
    while len(latencies) < 2 or (len(latencies) < MOST_LATENCIES and sum(latencies) < seconds):
        started = time.perf_counter()
        embedder.embed([text])
        latencies.append(time.perf_counter() - started)
        if progress is not None:
            progress(len(latencies))
    return Latency(median(latencies), quantiles(latencies, n=100, method="inclusive")[98], len(latencies))


def memory_used(engine: Any) -> str:
    """For people: of the GPU that the engine runs on, else of this process."""
    if hasattr(engine, "memory"):
        gigabytes = (engine.memory.active() / 1e9, engine.memory.peak() / 1e9, engine.memory.limit / 1e9)
        return "{:.2f} GB in use, {:.2f} GB at most, of {:.1f} GB".format(*gigabytes)
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB of the process at most"


def _endless(batches: Sequence[TokenBatch], started: float, seconds: float) -> Iterator[TokenBatch]:
    """`batches` over and over until the time is up."""
    while True:
        for batch in batches:
            if time.perf_counter() - started > seconds:
                return
            yield batch

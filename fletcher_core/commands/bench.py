"""`fletcher bench`: how fast this machine embeds out, in a few seconds."""

from pathlib import Path
from typing import Annotated

import typer

from fletcher_core.commands import options
from fletcher_core.commands.output import print_json
from fletcher_core.commands.progress import Progress
from fletcher_core.errors import ConfigError

_TEXTS = 4096


def bench(
    model: options.Model = options.DEFAULT_MODEL,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts", metavar="FILE", help="A text a line.", show_default="built-in texts of 1 to 30 sentences"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=3600, help="For each of the two parts.")] = 5.0,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    max_length: options.MaxLength = None,
    dimension: options.Dimension = None,
    prompt: options.Prompt = None,
    long_text: options.LongText = "truncate",
    threads: options.Threads = None,
    devices: options.Devices = None,
    as_json: options.Json = False,
) -> int:
    """Measure this machine: texts and tokens a second in full batches, the latency of one text.

    Tokenizing is included. `fletcher selftest` checks that the vectors are right, too.
    """
    from fletcher_core.benchmark import memory_used, realistic_texts, single_text_latency, text_throughput
    from fletcher_core.embedder import Embedder

    chosen = realistic_texts(_TEXTS) if texts is None else _read(texts)
    embedder = Embedder.load(
        model,
        engine=engine,
        precision=precision,
        max_length=max_length,
        dimension=dimension,
        prompt=prompt,
        long_text=long_text,
        threads=threads,
        devices=options.devices_of(devices),
    )
    try:
        with Progress("texts") as progress:
            rate = text_throughput(embedder, chosen, seconds, lambda done: progress.show(done, None))
        with Progress("calls") as progress:
            short = min(chosen[:100], key=len)
            latency = single_text_latency(embedder, short, seconds, lambda done: progress.show(done, None))
        memory = memory_used(embedder.engine)
    finally:
        embedder.close()
    if as_json:
        print_json(
            {
                "model": embedder.card.name,
                "engine": embedder.engine.name,
                "precision": embedder.engine.precision,
                "device": embedder.engine.device,
                "texts": rate.texts,
                "seconds": round(rate.seconds, 3),
                "texts_per_second": round(rate.texts_per_second, 1),
                "tokens_per_second": round(rate.tokens_per_second, 1),
                "latency_p50_seconds": latency.p50,
                "latency_p99_seconds": latency.p99,
                "latency_calls": latency.calls,
                "memory": memory,
            }
        )
        return 0
    mean = rate.tokens / rate.texts
    print(f"model       {embedder.card.name}")
    print(f"engine      {embedder.engine.name} {embedder.engine.precision} on {embedder.engine.device}")
    print(
        f"throughput  {rate.texts_per_second:,.0f} texts/s, {rate.tokens_per_second:,.0f} tokens/s "
        f"({rate.texts:,} texts of {mean:.0f} tokens on average in {rate.seconds:.1f} s)"
    )
    print(
        f"latency     {latency.p50 * 1e3:.2f} ms p50, {latency.p99 * 1e3:.2f} ms p99 of one text of {len(short)} "
        f"characters, {latency.calls} calls"
    )
    print(f"memory      {memory}")
    return 0


def _read(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--texts {str(file)!r} cannot be read as UTF-8: {error}") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise ConfigError(f"--texts {str(file)!r} has no text: write a text a line into it")
    return texts

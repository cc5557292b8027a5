"""The service on a GPU: Arrow Flight and HTTP against `Embedder.embed` on the same texts, and what sampled layers cost.

    python bench/gpu_service.py --tokenizer FOLDER [--shape minilm] [--engine mlx]

`--tokenizer` is a folder of `bench/gpu.py --prepare`. Floor: the engine's own rate from Arrow strings, in the same
process's rounds before and after. Clients of HTTP are in a process of their own and send 64 texts a request.
"""

import argparse
import json
import threading
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
from gpu_models import TEXTS_FILE, real_texts, write_model
from service import load

from fletcher_core import Embedder
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.flight import FlightService, FlightSettings
from fletcher_core.telemetry.metrics import REGISTRY

ROUNDS = 5
TEXTS_A_REQUEST = 64


def rate(call: Any, count: int) -> float:
    began = time.perf_counter()
    call()
    return count / (time.perf_counter() - began)


def layers() -> dict[str, tuple[float, float]]:
    """By layer, batches and seconds that were observed so far."""
    (family,) = [each for each in REGISTRY.collect() if each.name == "fletcher_layer_duration_seconds"]
    found: dict[str, list[float]] = {}
    for sample in family.samples:
        if sample.name.endswith(("_count", "_sum")):
            found.setdefault(sample.labels["layer"], [0.0, 0.0])[sample.name.endswith("_sum")] = sample.value
    return {layer: (values[0], values[1]) for layer, values in found.items()}


def exchange(address: str, table: pa.Table) -> pa.Table:
    client = flight.FlightClient(address)
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b""))

    def write() -> None:
        writer.begin(table.schema)
        writer.write_table(table, max_chunksize=8192)
        writer.done_writing()

    writing = threading.Thread(target=write)
    writing.start()
    answer = reader.read_all()
    writing.join()
    writer.close()
    client.close()
    return answer


def http_requests(texts: list[str]) -> list[bytes]:
    made = []
    for start in range(0, len(texts) - TEXTS_A_REQUEST, TEXTS_A_REQUEST):
        body = json.dumps({"input": texts[start : start + TEXTS_A_REQUEST], "encoding_format": "base64"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return made


def measure_layers(folder: Path, engine: str, texts: pa.Array) -> None:
    """The same vectors, the device's memory, and the price."""
    plain = Embedder.load(folder, engine=engine, isolation="none")
    want = plain.embed(texts)
    rates: dict[int, list[float]] = {}
    for every in (0, 1000, 100, 10):
        sampled = Embedder.load(folder, engine=engine, isolation="none", layer_sample=every)
        got = sampled.embed(texts)
        for _ in range(ROUNDS):
            before = rate(lambda: plain.embed(texts), len(texts))
            rates.setdefault(every, []).append(rate(lambda engine=sampled: engine.embed(texts), len(texts)) / before)
        print(
            f"layer_sample={every}: {median(rates[every]):.3f} of the rate without; "
            f"largest difference of a vector's element {np.abs(got - want).max():.1e}",
            flush=True,
        )
        if hasattr(sampled.engine, "close"):
            sampled.engine.close()
    print("device memory:", {kind: f"{size / 2**30:.2f} GiB" for kind, size in plain.engine.device_memory().items()})
    for layer, (count, seconds) in layers().items():
        print(f"  {layer:<12}{count:>8.0f} batches{1e3 * seconds / max(count, 1):>9.3f} ms")
    if hasattr(plain.engine, "close"):
        plain.engine.close()


def measure_service(folder: Path, engine: str, texts: list[str]) -> None:
    """Flight and HTTP, through the engine as the service runs it: on a GPU in a process of its own."""
    from fletcher_core.service.http import HttpService
    from fletcher_core.service.readiness import Readiness
    from fletcher_core.service.settings import ServiceSettings

    embedder = Embedder.load(folder, engine=engine, layer_sample=200)
    table = pa.table({"text": texts})
    column = table["text"]
    batcher = Batcher(embedder)
    readiness = Readiness(batcher, 2.0)
    print(f"{embedder.engine.name} on {embedder.engine.device}: ready {readiness.check().ready}")
    service = FlightService(batcher, FlightSettings())
    batcher.close(5)  # `embed` and the batcher would take turns: one at a time
    own = [rate(lambda: embedder.embed(column), len(texts)) for _ in range(ROUNDS)]
    batcher = Batcher(embedder)
    service.close()
    service = FlightService(batcher, FlightSettings())
    through = [rate(lambda: exchange(service.address, table), len(texts)) for _ in range(ROUNDS)]
    ratio = median(through) / median(own)
    print(f"embed {median(own):,.0f} texts/s; DoExchange {median(through):,.0f} texts/s: {ratio:.3f}", flush=True)
    service.close()
    settings = ServiceSettings(port=0)
    with Running(HttpService(batcher, settings, Readiness(batcher, 2.0)).app) as port:
        results, cpu = load("closed", port, http_requests(texts), 10.0)
    good = [seconds for status, seconds in results if status == 200]
    print(
        f"HTTP, 64 clients, {TEXTS_A_REQUEST} texts a request: {len(good) * TEXTS_A_REQUEST / 10:,.0f} texts/s, "
        f"{len(results) - len(good)} errors, p50 {1e3 * np.percentile(good, 50):.1f} ms, p99 "
        f"{1e3 * np.percentile(good, 99):.1f} ms; clients' CPU {cpu:.1f} s"
    )
    batcher.close(5)
    embedder.close()


class Running:
    """An ASGI application on a free port, on a thread."""

    def __init__(self, app: Any) -> None:
        import uvicorn

        config = uvicorn.Config(app, port=0, http="httptools", loop="uvloop", log_level="warning", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> int:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--shape", default="minilm")
    parser.add_argument("--texts", type=int, default=60_000)
    parser.add_argument("--engine", default="mlx")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        model = write_model(options.shape, options.tokenizer, Path(folder))
        texts = real_texts(options.texts, options.tokenizer / TEXTS_FILE)
        measure_service(model, options.engine, texts)
        measure_layers(model, options.engine, pa.array(texts))


if __name__ == "__main__":
    main()

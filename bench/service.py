"""The service under load, against the engine alone in the same run.

    .venv/bin/python bench/service.py                    # 60 s with 64 clients, then 20 s of four times that load
    .venv/bin/python bench/service.py --seconds 10 --json service.json

Floor: what the engine does with the same texts in batches of its own choice (`Embedder.embed`), measured before and
after, on the same cores, on which the service, HTTP and the clients run as well. The clients are in a process of their
own, one connection each, with requests made beforehand: what they cost is printed, as it is no part of the service.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 64
TIMEOUT = 5.0  # seconds, of a request under overload
QUEUE_TOKENS = 60_000


def texts(count: int, seed: int) -> list[str]:
    """Different texts of 4 to 180 words, as titles, comments and paragraphs are."""
    chance = random.Random(seed)
    words = [word for text in json.loads((ROOT / "tests/data/golden/texts.json").read_text()) for word in text.split()]
    made = []
    for number in range(count):
        size = min(180, int(chance.lognormvariate(3.3, 0.8)) + 4)
        start = chance.randrange(len(words) - size)
        made.append(f"{number} " + " ".join(words[start : start + size]))
    return made


def request(text: str) -> bytes:
    body = json.dumps({"input": text, "encoding_format": "base64"}).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    )
    return f"{head}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """Sends one request at a time and reads no more of the answer than its status and its end."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] | None = None
        self._data = bytearray()
        self._end = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._end:
            head = self._data.find(b"\r\n\r\n")
            if head < 0:
                return
            lower = bytes(self._data[:head]).lower()
            length = lower.index(b"content-length:") + 15
            self._end = head + 4 + int(lower[length:].split(b"\r\n", 1)[0])
        if len(self._data) >= self._end and self.answer is not None:
            answer, self.answer = self.answer, None
            status = int(self._data[9:12])
            self._data.clear()
            self._end = 0
            answer.set_result(status)

    def connection_lost(self, _: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(0)

    async def ask(self, data: bytes) -> int:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return await self.answer


async def _closed_loop(port: int, requests: list[bytes], seconds: float) -> list[tuple[int, float]]:
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + seconds
    results: list[tuple[int, float]] = []
    coming = iter(requests * 1000)

    async def client() -> None:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        while (began := time.perf_counter()) < until:
            results.append((await connection.ask(next(coming)), time.perf_counter() - began))
        connection.transport.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return results


async def _open_loop(port: int, requests: list[bytes], seconds: float, rate: float) -> list[tuple[int, float]]:
    """`rate` requests a second, whatever becomes of them, on as many connections as that takes."""
    loop = asyncio.get_running_loop()
    idle: list[Connection] = []
    results: list[tuple[int, float]] = []
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    sent = 0

    async def one(data: bytes) -> None:
        connection = idle.pop() if idle else (await loop.create_connection(Connection, "127.0.0.1", port))[1]
        asked = time.perf_counter()
        status = await connection.ask(data)
        results.append((status, time.perf_counter() - asked))
        if status:
            idle.append(connection)

    while (now := time.perf_counter() - began) < seconds:
        while sent < now * rate:
            task = loop.create_task(one(requests[sent % len(requests)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    return results


def _in_a_process(queue: Any, kind: str, port: int, requests: list[bytes], seconds: float, rate: float) -> None:
    import uvloop

    run = _closed_loop(port, requests, seconds) if kind == "closed" else _open_loop(port, requests, seconds, rate)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(run)
    used = resource.getrusage(resource.RUSAGE_SELF)
    queue.put((results, used.ru_utime + used.ru_stime))


def load(kind: str, port: int, requests: list[bytes], seconds: float, rate: float = 0.0) -> tuple[Any, float]:
    """Statuses with seconds, and the CPU seconds of the clients."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_a_process, args=(queue, kind, port, requests, seconds, rate))
    process.start()
    answer = queue.get()
    process.join()
    return answer


@contextmanager
def service() -> Iterator[tuple[int, int]]:
    """A service in a process of its own: its port and its process."""
    code = (
        "from fletcher_core.embedder import Embedder\n"
        "from fletcher_core.service.run import NICENESS, serve\n"
        "from fletcher_core.service.settings import BatcherSettings, ServiceSettings\n"
        f"batching = BatcherSettings(request_timeout={TIMEOUT}, max_queue_tokens={QUEUE_TOKENS})\n"
        "settings = ServiceSettings(port=0, batching=batching)\n"
        "serve(Embedder.load(niceness=NICENESS), settings, started=lambda at: print(at.http, flush=True))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().strip().rsplit(":", 1)[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)


def resident(pid: int) -> float:
    """MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def engine_rate(given: list[str]) -> tuple[float, float]:
    """Texts a second, and CPU seconds a text, of the engine alone in a process of its own."""
    code = (
        "import json, sys, time\n"
        "from fletcher_core.embedder import Embedder\n"
        "texts = json.load(sys.stdin)\n"
        "embedder = Embedder.load()\n"
        "embedder.embed(texts[:500])\n"
        "began, used = time.perf_counter(), time.process_time()\n"
        "embedder.embed(texts)\n"
        "print(len(texts) / (time.perf_counter() - began), (time.process_time() - used) / len(texts))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    rate, cost = done.stdout.split()
    return float(rate), float(cost)


def milliseconds(seconds: list[float], share: float) -> float:
    return float(np.percentile(seconds, share) * 1000) if seconds else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    given = texts(6000, 1)
    requests = [request(text) for text in given]
    figures: dict[str, Any] = {"cores": os.cpu_count(), "clients": CLIENTS, "words": statistics.mean(map(len, given))}
    rates = [engine_rate(given)]
    with service() as (port, pid):
        load("closed", port, requests, 3.0)
        used = cpu_seconds(pid)
        began = time.perf_counter()
        results, clients_cpu = load("closed", port, requests, options.seconds)
        seconds = time.perf_counter() - began
        server_cpu = cpu_seconds(pid) - used
        rates.append(engine_rate(given))
        rate = len(results) / options.seconds
        engine = statistics.mean(rate for rate, _ in rates)
        latencies = [seconds for _, seconds in results]
        figures["load"] = {
            "engine_texts_per_s": [round(rate, 1) for rate, _ in rates],
            "texts_per_s": round(rate, 1),
            "ratio": round(rate / engine, 3),
            "cpu_ratio": round(statistics.mean(cost for _, cost in rates) / (server_cpu / len(results)), 3),
            "p50_ms": round(milliseconds(latencies, 50), 1),
            "p99_ms": round(milliseconds(latencies, 99), 1),
            "errors": sum(status != 200 for status, _ in results),
            "cpu_ms_a_text": {
                "engine": round(1000 * statistics.mean(cost for _, cost in rates), 3),
                "service": round(1000 * server_cpu / len(results), 3),
                "clients": round(1000 * clients_cpu / len(results), 3),
            },
            "wall_s": round(seconds, 1),
        }
        print(json.dumps(figures["load"], indent=2), flush=True)
        before = resident(pid)
        load("open", port, requests, 5.0, 4 * rate)
        middle = resident(pid)
        results, clients_cpu = load("open", port, requests, 20.0, 4 * rate)
        after = resident(pid)
        taken = [seconds for status, seconds in results if status == 200]
        refused = [seconds for status, seconds in results if status in (429, 503)]
        figures["overload"] = {
            "offered_per_s": round(4 * rate, 1),
            "statuses": dict(Counter(status for status, _ in results)),
            "answered_per_s": round(len(taken) / 20.0, 1),
            "refused_ms": {f"p{share:g}": round(milliseconds(refused, share), 2) for share in (50, 90, 99, 100)},
            "answered_ms": {f"p{share:g}": round(milliseconds(taken, share), 1) for share in (50, 99, 100)},
            "deadline_ms": TIMEOUT * 1000,
            "resident_mb": [round(size, 1) for size in (before, middle, after)],
            "clients_cpu_s": round(clients_cpu, 1),
        }
        print(json.dumps(figures["overload"], indent=2), flush=True)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            figures["ready_after"] = json.load(answer)["ready"]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""The process that attacks: runs cases from a number on and says on its standard output how each ended, a line each.

It is apart from `chaos.fuzz_server` because a case of the client may end the process that it runs in: that is what is
being looked for.
"""

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa

from chaos.bad_server import bad_server
from chaos.embedded_server import Broken, EmbeddedServer
from chaos.flight_calls import ATTACKS, attack, conversations, rows
from fletcher_core.errors import LongbowError
from fletcher_core.longbow.client import LongbowClient, LongbowSettings

KINDS = {**ATTACKS, "client": 8}
CALL_SECONDS = 0.5
_LATE_SECONDS = 5.0
_RESOURCES_EVERY = 20
_FORGET_EVERY = 40
_READ_BYTES = 2**27
_CLIENT_BYTES = 2**30


def client_case(random: Random, answered: list[list[bytes]]) -> list[str]:
    """Our client against a bad server: what came out of it that is no LongbowError, or came too late."""
    server = bad_server(random, answered)
    settings = LongbowSettings(
        server.address,
        server.address,
        call_timeout=CALL_SECONDS,
        put_timeout=CALL_SECONDS,
        read_timeout=CALL_SECONDS,
        max_read_bytes=_READ_BYTES,
    )
    said = []
    table = rows(random, 10, 4)
    try:
        with LongbowClient(settings) as client:
            calls: list[tuple[str, Callable[[], object]]] = [
                ("readiness", client.readiness),
                ("readiness of a dataset", lambda: client.readiness("a")),
                ("put", lambda: client.put("a", table)),
                ("scan", lambda: client.scan("a")),
                ("present_ids", lambda: client.present_ids("a", "s", ids_only=True)),
                ("search", lambda: client.search("a", np.ones((random.choice((1, 3)), 4), np.float32), 3)),
                ("delete", lambda: client.delete("a", 1)),
                ("delete_dataset", lambda: client.delete_dataset("a")),
                ("list_datasets", client.list_datasets),
            ]
            for name, call in random.sample(calls, 3):
                started = time.monotonic()
                try:
                    _use(call())
                except LongbowError as error:
                    if len(str(error)) > 5000:
                        said.append(f"{name}: a message of {len(str(error))} characters: {str(error)[:200]}")
                except BaseException as error:  # noqa: BLE001
                    said.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
                if (seconds := time.monotonic() - started) > CALL_SECONDS + _LATE_SECONDS:
                    said.append(f"{name}: returned after {seconds:.1f} s, its timeout is {CALL_SECONDS} s")
    finally:
        server.close()
    return said


def _use(value: object) -> None:
    """As a caller does: whatever was let through is read."""
    for table in value if isinstance(value, list) else [value]:
        if isinstance(table, pa.Table):
            table.validate(full=True)
            table.to_pydict()


def main() -> None:
    """Ends at the time or after the last case; `{"case", "kind", "said"}` a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--cases", type=int, default=None)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--replay", type=Path, default=None, help="the cases are the files of this folder")
    options = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="fuzz-server-"))
    started = time.monotonic()
    server = EmbeddedServer(folder / "rows-0")
    try:
        recorded, answered = conversations(server)
        kept = sorted(options.replay.glob("*.json")) if options.replay else None
        for case in itertools.count(options.first):
            done = case - options.first
            # One at least: on a busy machine the start alone may take so many seconds.
            if done and (time.monotonic() - started > options.seconds or done == options.cases):
                break
            seed, number, only = options.seed, case, options.only
            if kept is not None:
                if case >= len(kept):
                    break
                saved = json.loads(kept[case].read_text())
                seed, number, only = saved["seed"], saved["case"], saved["only"]
            kinds = [only] if only else list(KINDS)
            random = Random(f"{seed}:{number}")
            kind = random.choices(kinds, [KINDS[name] for name in kinds])[0]
            _say(case, kind, None)
            try:
                if kind == "client":
                    said = client_case(random, answered)
                else:
                    said = attack(kind, server, random, recorded)
                    server.check()
                if done % _RESOURCES_EVERY == _RESOURCES_EVERY - 1:
                    server.check_resources()
                    said += _own_memory()
                if done % _FORGET_EVERY == _FORGET_EVERY - 1:
                    server.forget()
            except Broken as error:
                said = [f"broken: {error}"]
                server.close()
                server = EmbeddedServer(folder / f"rows-{case + 1}")
            _say(case, kind, said)
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def _own_memory() -> list[str]:
    """Of this process, where our client runs."""
    status = Path("/proc/self/status")
    if not status.exists():
        return []
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    size = int(line.split()[1]) * 1024
    return [f"memory: the client's process has {size / 2**20:.0f} MiB"] if size > _CLIENT_BYTES else []


def _say(case: int, kind: str, said: list[str] | None) -> None:
    os.write(1, json.dumps({"case": case, "kind": kind, "said": said}).encode() + b"\n")


if __name__ == "__main__":
    main()

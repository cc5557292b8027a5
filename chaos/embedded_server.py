"""The embedded server as a process to be attacked, and what must still be true of it after each attack."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

KNOWN, DIMENSION, ROWS = "kept-as-it-is", 8, 300
# Above what the server has when it starts. gRPC keeps threads and memory of a burst for a while.
MORE_MEMORY = 512 * 2**20
MORE_THREADS = 64
MORE_FILES = 128
_SETTLE_SECONDS = 10.0
_CALL_SECONDS = 20.0


class Broken(Exception):
    """The server is not what it was; the message says in which way."""


class EmbeddedServer:
    """A server on `folder` with one known dataset, in this process's group so that it ends with it."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "fletcher_core.longbow.server", "--data-path", str(folder)]
        self._log = (folder.parent / f"{folder.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*command, "--data-port", "0", "--meta-port", "0", "--idle-exit", "120"],
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        self.data, self.meta = ready["data"], ready["meta"]
        self.rows = _known_rows()
        self.client = flight.FlightClient(f"grpc://{self.data}")
        writer, _ = self.client.do_put(flight.FlightDescriptor.for_path(KNOWN), self.rows.schema)
        writer.write_table(self.rows)
        writer.close()
        self.check()
        self._before = self.resources()

    def resources(self) -> dict[str, int]:
        """Resident bytes, threads and open files; empty where there is no /proc."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return {}
        values = dict(line.split(":", 1) for line in status.read_text().splitlines())
        files = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return {"memory": int(values["VmRSS"].split()[0]) * 1024, "threads": int(values["Threads"]), "files": files}

    def check(self) -> None:
        """Raises Broken unless the server runs, answers on both ports and has its rows."""
        if (status := self.process.poll()) is not None:
            raise Broken(f"the server ended with status {status}: {self.last_words()}")
        try:
            self._check_answers()
        except (pa.ArrowException, flight.FlightError, OSError, KeyError, ValueError) as error:
            time.sleep(0.2)
            if (status := self.process.poll()) is not None:
                raise Broken(f"the server ended with status {status}: {self.last_words()}") from error
            raise Broken(f"a plain call fails with {type(error).__name__}: {str(error)[:300]}") from error

    def check_resources(self) -> None:
        """Raises Broken when memory, threads or open files have not come down in time."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        allowed = {"memory": MORE_MEMORY, "threads": MORE_THREADS, "files": MORE_FILES}
        while self._before:
            now = self.resources()
            over = {name: now[name] for name, more in allowed.items() if now[name] > self._before[name] + more}
            if not over:
                return
            if time.monotonic() > deadline:
                raise Broken(f"the server does not give back {over}; at its start it had {self._before}")
            time.sleep(0.2)

    def _check_answers(self) -> None:
        options = flight.FlightCallOptions(timeout=_CALL_SECONDS)
        list(self.client.do_action(("fault", b"{}"), options))  # an attack may have set some
        for port in (self.data, self.meta):
            with flight.FlightClient(f"grpc://{port}") as client:
                (answer,) = client.do_action(("check_readiness", json.dumps({"dataset": KNOWN}).encode()), options)
                said = json.loads(answer.body.to_pybytes())
                if said.get("index_len") != ROWS:
                    raise Broken(f"check_readiness says {said}, and {ROWS} rows were put")
        found = self.client.do_get(flight.Ticket(json.dumps({"name": KNOWN}).encode()), options).read_all()
        if not found.sort_by("id").equals(self.rows):
            raise Broken(f"a scan gives other rows: {found.num_rows} of {ROWS}")
        query = {"dataset": KNOWN, "vector": self.rows["vector"][7].as_py(), "k": 3}
        (body,) = self.client.do_action(("VectorSearch", json.dumps(query).encode()), options)
        hits = pa.ipc.open_stream(body.body).read_all()
        if hits["id"][0].as_py() != 7 or hits.num_rows != 3:
            raise Broken(f"a search finds {hits.to_pydict()} instead of row 7")

    def forget(self) -> None:
        """Delete every dataset but the known one, so that memory is judged without what was put on purpose."""
        options = flight.FlightCallOptions(timeout=_CALL_SECONDS)
        with flight.FlightClient(f"grpc://{self.meta}") as client:
            names = [info.descriptor.path[0] for info in client.list_flights(options=options)]
        for name in names:
            if name != KNOWN.encode():
                body = json.dumps({"dataset": name.decode()}).encode()
                list(self.client.do_action(("delete-dataset", body), options))

    def last_words(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text(errors="replace")[-300:]

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self._log.close()


def _known_rows() -> pa.Table:
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIMENSION)).astype(np.float32)
    values: Any = pa.array(vectors.reshape(-1))
    kind = pa.list_(pa.field("item", pa.float32()), DIMENSION)
    texts = [f"row {n} é" for n in range(ROWS)]
    ids = pa.array(range(ROWS), pa.uint64())
    columns = [ids, pa.FixedSizeListArray.from_arrays(values, type=kind), pa.array(texts)]
    return pa.table(columns, names=["id", "vector", "key"])

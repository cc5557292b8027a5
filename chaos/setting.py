"""What the cases run on: an engine in a watched process that can be broken, and an embedded Longbow that can be."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.flight as flight

from chaos.broken_engine import VARIABLE, Faults
from fletcher_core import Embedder
from fletcher_core.engines import EngineSpec
from fletcher_core.engines.failover import FailoverEngine, ProbeIntervals
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.engines.isolated.engine import Supervision
from fletcher_core.longbow.breaker import BreakerSettings
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded

# Batches here take some 20 ms: 2 s of silence are a hang. A failed engine is tried again after about as long.
SUPERVISION = Supervision(hang_floor=2.0, check_every=5.0)
INTERVALS = ProbeIntervals(first=2.0, longest=30.0)
_KEPT = "address.json"  # of a wiped server, so that it comes back at the same address


@contextmanager
def broken(faults: Faults) -> Iterator[None]:
    """Engines that are started inside have these faults."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = json.dumps(asdict(faults))
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def failover_embedder(plain: Embedder, threads: int, *, second_is_broken: bool = False) -> Embedder:
    """`plain`'s model on a CPU engine that can be broken (see `broken`), in a process of its own, with another CPU
    engine to stand in and a third, in float32, for vectors that are not sound."""
    folder = str(plain.package.folder)
    sound = EngineSpec(folder, plain.package.name, "cpu", "auto", True, plain.dimension, threads)
    breakable = replace(sound, loader="chaos.broken_engine:load")
    standby = replace(sound, choice="openvino")
    second = replace(breakable if second_is_broken else sound, choice="openvino", precision="fp32")
    engine = FailoverEngine(
        IsolatedEngine(breakable, SUPERVISION), lambda: IsolatedEngine(standby, SUPERVISION), INTERVALS
    )
    return Embedder(
        plain.package,
        engine,
        plain.encoder,
        plain.encoder,
        plain.card,
        True,
        None,
        lambda: IsolatedEngine(second, SUPERVISION),
    )


class Server:
    """The embedded Longbow on `folder`, a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = ensure_embedded(folder)

    def client(self, **settings: Any) -> LongbowClient:
        """A client that gives up soon."""
        chosen: dict[str, Any] = {"call_timeout": 2.0, "put_timeout": 5.0, "read_timeout": 10.0, **settings}
        chosen.setdefault("breaker", BreakerSettings(max_backoff=5.0))
        return LongbowClient(LongbowSettings(self.address.data, self.address.meta, **chosen))

    def fault(self, **faults: Any) -> None:
        """These faults and no others from now on; while calls fail, it is tried again."""
        for _ in range(200):
            with contextlib.suppress(flight.FlightUnavailableError), self._connection() as connection:
                options = flight.FlightCallOptions(timeout=5.0)
                list(connection.do_action(("fault", json.dumps(faults).encode()), options))
                return

    def start(self) -> None:
        self.address = ensure_embedded(self._folder)

    def stop(self) -> None:
        stop_embedded(self._folder)

    def wipe(self) -> None:
        """Take everything away from it and start it again at the same address."""
        self.stop()
        for path in self._folder.iterdir():
            if path.name != _KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.start()

    def _connection(self) -> flight.FlightClient:
        return flight.FlightClient(f"grpc://{self.address.data}")

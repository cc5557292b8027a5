"""Servers of each kind: the embedded one, and the real ones that Go can install here."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from committed_rows import QUICK_BREAKER
from longbow_installation import NEWEST, V0_1_1, NotInstalled, command
from longbow_process import EmbeddedServer, LongbowProcess
from v0_1_1_client import V011Client

from fletcher_core.longbow.client import LongbowClient, LongbowSettings

_names = itertools.count()
Start = Callable[..., "Served"]


@dataclass(frozen=True)
class Served:
    """A running server and clients of it. `kind` is 'embedded', 'newest' or 'v0.1.1'."""

    kind: str
    process: LongbowProcess | EmbeddedServer

    def client(self, *, data: str = "", **settings: Any) -> LongbowClient:
        """A client; `data` is another way to the data port, as by a slow network."""
        address = self.process.address
        made = V011Client if self.kind == "v0.1.1" else LongbowClient
        settings.setdefault("breaker", QUICK_BREAKER)
        return made(LongbowSettings(data or address.data, address.meta, **settings))


def start_server(kind: str, folder: Path, **settings: object) -> Served:
    """A server of this kind on an empty folder; skips the test, with the reason, where there is none.

    `settings` are LONGBOW_ variables of a real server, and faults of the embedded one.
    """
    if kind == "embedded":
        return Served(kind, EmbeddedServer(folder, **settings))
    try:
        arguments = command({"newest": NEWEST, "v0.1.1": V0_1_1}[kind])
    except NotInstalled as reason:
        pytest.skip(str(reason))
    return Served(kind, LongbowProcess(folder, arguments, **settings))


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Served]]:
    """One server of a kind for all tests that need not restart it."""
    started: dict[str, Served] = {}

    def of_kind(kind: str) -> Served:
        if kind not in started:
            started[kind] = start_server(kind, tmp_path_factory.mktemp(kind))
        return started[kind]

    yield of_kind
    for served in started.values():
        served.process.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers of the test's own, which it may restart and break."""
    started: list[Served] = []

    def new(kind: str, **settings: object) -> Served:
        started.append(start_server(kind, tmp_path / f"server {len(started)}", **settings))
        return started[-1]

    yield new
    for served in started:
        served.process.kill()


@pytest.fixture
def name() -> str:
    """A dataset of the test's own."""
    return f"docs-{next(_names)}"

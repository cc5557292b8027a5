"""The memory of all engines that this process has: each engine in, one figure a kind out, for `DEVICE_MEMORY`."""

import os
import weakref
from collections import Counter
from typing import TypeVar

from fletcher_core.engines.engine import Engine
from fletcher_core.engines.failover import FailoverEngine
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.engines.pool import EnginePool
from fletcher_core.telemetry.metrics import DEVICE_MEMORY

AnyEngine = TypeVar("AnyEngine", bound=Engine)

_watched: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def watched(engine: AnyEngine) -> AnyEngine:
    """`engine`, whose memory is shown as long as there is such an engine."""
    _watched.add(engine)
    return engine


def _figures() -> dict[str, int]:
    """Bytes by kind: engines of one process say the same of it, those of several add up."""
    processes: dict[int, dict[str, int]] = {}
    for engine in list(_watched):
        in_use = engine.in_use if isinstance(engine, FailoverEngine) else engine
        parts = [in_use]
        if isinstance(in_use, EnginePool):
            parts = [member.engine for member in in_use.members if member.is_in]
        for part in parts:
            process = part.pid if isinstance(part, IsolatedEngine) else os.getpid()
            if process is not None:
                processes.setdefault(process, {}).update(part.device_memory())
    total: Counter[str] = Counter()
    for kinds in processes.values():
        total.update(kinds)
    return dict(total)


DEVICE_MEMORY.ask(_figures)

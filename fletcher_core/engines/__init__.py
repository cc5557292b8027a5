"""Devices that turn token batches into vectors."""

from fletcher_core.engines.choose import EngineChoice, load_engine
from fletcher_core.engines.engine import Engine, Precision
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.engines.start import Isolation, second_opinion, start_engine

__all__ = [
    "Engine",
    "EngineChoice",
    "EngineSpec",
    "Isolation",
    "Precision",
    "load_engine",
    "second_opinion",
    "start_engine",
]

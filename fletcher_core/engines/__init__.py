"""Devices that turn token batches into vectors."""

from fletcher_core.engines.choose import EngineChoice, load_engine
from fletcher_core.engines.engine import Engine, Precision

__all__ = ["Engine", "EngineChoice", "Precision", "load_engine"]

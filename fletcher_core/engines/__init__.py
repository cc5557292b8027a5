"""Devices that turn token batches into vectors."""

from fletcher_core.engines.choose import load_engine
from fletcher_core.engines.engine import Engine
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.engines.start import second_opinion, start_engine
from fletcher_core.setting_values import EngineChoice, Isolation, Precision

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

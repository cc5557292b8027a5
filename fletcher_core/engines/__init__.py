"""Devices that turn token batches into vectors."""

from fletcher_core.engines.engine import Engine, Precision
from fletcher_core.engines.openvino import OpenVinoEngine

__all__ = ["Engine", "OpenVinoEngine", "Precision"]

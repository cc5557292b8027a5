"""An engine in a process of its own: what it does to that process, the caller's survives."""

from fletcher_core.engines.isolated.engine import EngineLost, IsolatedEngine

__all__ = ["EngineLost", "IsolatedEngine"]

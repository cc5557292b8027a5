"""Fletcher core: text in, vectors out. Knows nothing of Dagster."""

from typing import TYPE_CHECKING, Any

from fletcher_core.errors import FletcherError

if TYPE_CHECKING:
    from fletcher_core.embedder import Embedder

__all__ = ["Embedder", "FletcherError"]


def __getattr__(name: str) -> Any:
    # The embedder brings OpenVINO, two seconds of import that a Dagster code location should not wait for.
    if name == "Embedder":
        from fletcher_core.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

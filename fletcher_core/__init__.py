"""Fletcher core: text in, vectors out. Knows nothing of Dagster."""

from fletcher_core.embedder import Embedder
from fletcher_core.errors import FletcherError

__all__ = ["Embedder", "FletcherError"]

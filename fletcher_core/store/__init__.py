"""The durable vector store: append-only Parquet segments with a manifest that can be rebuilt from them."""

from fletcher_core.store.compaction import CompactionReport
from fletcher_core.store.generation import Generation
from fletcher_core.store.live import live_reader, live_table, vector_matrix
from fletcher_core.store.manifest import Delivery, Manifest
from fletcher_core.store.quarantine import Quarantine
from fletcher_core.store.schema import RESERVED_COLUMNS
from fletcher_core.store.segments import Segment
from fletcher_core.store.store import VectorStore

__all__ = [
    "RESERVED_COLUMNS",
    "CompactionReport",
    "Delivery",
    "Generation",
    "Manifest",
    "Quarantine",
    "Segment",
    "VectorStore",
    "live_reader",
    "live_table",
    "vector_matrix",
]

"""How far Longbow is behind the store: a generation and a server's address in, rows and an age out. Asks no server."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fletcher_core.store.generation import Generation


@dataclass(frozen=True)
class DeliveryLag:
    """Rows (deletes among them) by how far they have come: `pending` were not yet read back from the server, `applied`
    were but are not seen in its index, `searchable` are. `oldest` is the age in seconds of the oldest segment that is
    not searchable, None without one; `partitions` have so many such rows, in the order of their keys."""

    pending: int
    applied: int
    searchable: int
    oldest: float | None
    partitions: Mapping[str, int]


def delivery_lag(generation: Generation, target: str, partition_keys: Collection[str]) -> DeliveryLag:
    """The lag of some partitions on one server. Raises StoreError when the manifest cannot be read."""
    states = {delivery.label: delivery.state for delivery in generation.manifest.deliveries(target, generation.name)}
    wanted = set(partition_keys)
    rows = {"pending": 0, "applied": 0, "searchable": 0}
    oldest: float | None = None
    behind: dict[str, int] = {}
    for segment in generation.segments():
        if segment.partition_key not in wanted:
            continue
        state = states.get(segment.label, "pending")
        rows[state if state in rows else "pending"] += segment.rows
        if state != "searchable":
            oldest = min(oldest or segment.committed_at, segment.committed_at)
            behind[segment.partition_key] = behind.get(segment.partition_key, 0) + segment.rows
    age = None if oldest is None else max(0.0, time.time() - oldest)
    return DeliveryLag(rows["pending"], rows["applied"], rows["searchable"], age, dict(sorted(behind.items())))

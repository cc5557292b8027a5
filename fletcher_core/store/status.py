"""A folder in, what the vector stores there hold out: rows, files, deliveries, quarantine, who is writing.

Looks only, besides what opening a store puts in order; loads no model and asks no server.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fletcher_core.addresses import Where, checked_address, is_address
from fletcher_core.store.generation import Generation
from fletcher_core.store.identity import FILE_NAME, read_identity
from fletcher_core.store.manifest import STATES
from fletcher_core.store.store import VectorStore


@dataclass(frozen=True)
class GenerationStatus:
    """One model's vectors. `rows` are live; `bytes` of `files` on disk; `last_run_at` in seconds since 1970, None
    without a run; `outbox` is what `outbox_rows` says of each server that anything was sent to. `pending` rows are not
    searchable on one of them, or, while there is none, wait for a first."""

    name: str
    model: str
    dimension: int
    fingerprint: str
    vector_type: str
    partitions: int
    rows: int
    files: int
    bytes: int
    last_run_id: str | None
    last_run_at: float | None
    outbox: dict[str, dict[str, int]]
    pending: int
    locked_by: list[str]


@dataclass(frozen=True)
class CollectionStatus:
    """A collection in the store at `address`, whose folder on this machine is `root`: its generations, the one written
    most recently first, and its rows set aside by reason."""

    collection: str
    root: Path
    address: str
    generations: list[GenerationStatus]
    quarantine: dict[str, int] = field(default_factory=dict)


def find_collections(folder: Where) -> list[tuple[Where, str]]:
    """Stores and their collections: `folder` itself, and those a level below, as a resource's `store_path` has them."""
    if is_address(folder):
        return _on_object_storage(checked_address(str(folder)))
    folder = Path(folder)
    found: set[tuple[Path, str]] = set()
    try:
        roots = [folder, *(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))]
    except OSError:
        return []
    for root in roots:
        found |= {(root, read_identity(path.parent).collection) for path in root.glob(f"*/{FILE_NAME}")}
    return sorted(found)


def _on_object_storage(address: str) -> list[tuple[Where, str]]:
    from fletcher_core.store.cloud.working_copy import find_stores, open_working_copy

    found: list[tuple[Where, str]] = []
    for place in find_stores(address):
        copy, manifest = open_working_copy(place)
        found += [(place, collection) for collection in manifest.collections()]
        copy.close()
        manifest.close()
    return found


def collection_status(root: Where, collection: str) -> CollectionStatus:
    """Raises StoreError when the store cannot be read."""
    with VectorStore.open(root, collection=collection) as store:
        reasons = Counter(store.quarantine.read()["reason"].to_pylist())
        return CollectionStatus(
            collection,
            store.root,
            store.place.address,
            [generation_status(generation) for generation in store.generations()],
            dict(sorted(reasons.items())),
        )


def generation_status(generation: Generation) -> GenerationStatus:
    """Raises StoreError when its files cannot be read."""
    segments, files = generation.segments(), generation.files()
    last = max(segments, key=lambda segment: segment.committed_at, default=None)
    outbox = {target: outbox_rows(generation, target) for target in generation.manifest.targets(generation.name)}
    waiting = [sum(rows.values()) - rows["searchable"] for rows in outbox.values()]
    return GenerationStatus(
        name=generation.name,
        model=generation.card.name,
        dimension=generation.card.dimension,
        fingerprint=generation.card.fingerprint,
        vector_type=generation.vector_type,
        partitions=len(generation.partitions()),
        rows=generation.row_count(),
        files=len(files),
        bytes=sum(file.stat().st_size for file in files if file.exists()),
        last_run_id=None if last is None else last.run_id,
        last_run_at=None if last is None else last.committed_at,
        outbox=outbox,
        pending=max(waiting, default=sum(segment.rows for segment in segments)),
        locked_by=generation.place.holders(f"{generation.name}--"),
    )


def outbox_rows(generation: Generation, target: str) -> dict[str, int]:
    """Rows in each state of delivery to a server: of 'searchable' the live ones, as those that later rows replaced are
    not found; of the others all that are to be sent, deletes among them. Raises StoreError."""
    states = {delivery.label: delivery.state for delivery in generation.manifest.deliveries(target, generation.name)}
    live = generation.live_rows_by_segment()
    rows: dict[str, int] = dict.fromkeys(map(str, STATES), 0)
    for segment in generation.segments():
        state = states.get(segment.label, "pending")
        rows[state] += live.get(segment.label, 0) if state == "searchable" else segment.rows
    return rows

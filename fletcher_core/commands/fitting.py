"""A collection that is there and rows that are to join it in; an error that says what differs out, if anything does."""

import pyarrow as pa

from fletcher_core.errors import ConfigError
from fletcher_core.models.card import ModelCard
from fletcher_core.store import Generation, VectorStore


def filled(store: VectorStore) -> Generation | None:
    """The generation written most recently of those that have rows; None when there is none."""
    return next((generation for generation in store.generations() if generation.partitions()), None)


def check_fits(present: Generation, card: ModelCard, metadata: pa.Schema) -> None:
    """Raises ConfigError when rows of `card` with columns `metadata`, unpartitioned, would replace those of `present`
    rather than stand beside them; it names what differs, and what to do."""
    if different := _different(present, card, metadata):
        raise ConfigError(
            f"the collection has rows already, in {present.root / present.name}, that were embedded with "
            f"{'; '.join(different)}. Give the same options as then, or another --collection, or --replace, which "
            "embeds this source anew and removes every other row of the collection"
        )


def _different(present: Generation, card: ModelCard, metadata: pa.Schema) -> list[str]:
    found = []
    then = present.card
    if then.name != card.name:
        found.append(f"--model {then.name} (now {card.name})")
    if then.dimension != card.dimension:
        found.append(f"--dimension {then.dimension} (now {card.dimension})")
    if not found and then.fingerprint != card.fingerprint:
        found.append(
            f"other settings or files of {card.name}, fingerprint {then.fingerprint[:12]} (now "
            f"{card.fingerprint[:12]}; --max-length, --prompt, --long-text and --precision int8 count)"
        )
    if present.metadata_schema.names != metadata.names:
        found.append(f"{_kept(present.metadata_schema.names)} (now {_kept(metadata.names)})")
    elif present.metadata_schema != metadata:
        found += [
            f"--keep {field.name} of type {field.type} (now {metadata.field(field.name).type})"
            for field in present.metadata_schema
            if field.type != metadata.field(field.name).type
        ]
    if keys := [key for key in present.partitions() if key]:
        found.append(f"a partition column, {keys[0]!r} among the partitions (now without; their asset keeps them)")
    return found


def _kept(names: list[str]) -> str:
    return " ".join(f"--keep {name}" for name in names) or "no --keep"

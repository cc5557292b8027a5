"""Which partitions of a store hold vectors of another model than the declared one."""

from fletcher_core.store.store import VectorStore


def outdated_partitions(store: VectorStore, fingerprint: str) -> set[str]:
    """Keys of the partitions that have rows under another fingerprint, also those that a run began to embed again.

    A run drops a partition of an older generation once the new one holds all of it, so what is left there is to do.
    """
    return {
        key
        for generation in store.generations()
        if generation.card.fingerprint != fingerprint
        for key in generation.partitions()
    }

"""What the rest of Fletcher needs to know of a model: a name for people, a fingerprint for machines."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCard:
    """Identity of an embedding model as configured.

    `fingerprint` (hex) covers weights, tokenizer, pooling, normalization, prompt, maximum length, long-text policy,
    output dimension, and whether it computes in int8: two cards with the same fingerprint give the same vectors, but
    for what one float precision differs from another.
    """

    name: str
    fingerprint: str
    dimension: int

"""What the rest of Fletcher needs to know of a model: a name for people, a fingerprint for machines."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCard:
    """Identity of an embedding model as configured.

    `fingerprint` (hex) covers weights, tokenizer, pooling, normalization, prompt, maximum length, long-text policy and
    output dimension: two cards with the same fingerprint give the same vectors.
    """

    name: str
    fingerprint: str
    dimension: int

"""What a generation is: one model, one schema, one vector type, for ever.

Written once, as an empty Parquet file beside the segments: its schema is theirs, its footer names the model. So a
generation without segments can be queried like any other, and a lost manifest can be rebuilt.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.errors import ConfigError, StoreError
from fletcher_core.models.card import ModelCard
from fletcher_core.setting_values import VectorType
from fletcher_core.store.durable import committed
from fletcher_core.store.schema import (
    check_metadata_names,
    new_generation_name,
    segment_schema,
)
from fletcher_core.store.versions import GENERATION_VERSION, check_version, version_of

FILE_NAME = "schema.parquet"
_FOOTER_KEY = b"fletcher.generation"


@dataclass(frozen=True)
class Identity:
    """The properties that make a generation, and its name; `created_at` is in seconds since 1970."""

    name: str
    collection: str
    card: ModelCard
    metadata_schema: pa.Schema
    vector_type: VectorType
    created_at: float

    @classmethod
    def new(cls, collection: str, card: ModelCard, metadata: pa.Schema, vector_type: VectorType) -> "Identity":
        """Raises `ConfigError` when a metadata column has a reserved name or the vector type is unknown."""
        check_metadata_names(metadata.names)
        if vector_type not in ("float32", "float16"):
            raise ConfigError(f"vector_type is {vector_type!r}: it must be 'float32' or 'float16'")
        plain = pa.schema([pa.field(field.name, field.type) for field in metadata])
        return cls(new_generation_name(collection, card), collection, card, plain, vector_type, time.time())

    def describes(self, other: "Identity") -> bool:
        """Whether rows of `other` may stand beside rows of this generation."""
        mine, theirs = (
            (one.collection, one.card.fingerprint, one.card.dimension, one.vector_type, one.metadata_schema)
            for one in (self, other)
        )
        return mine == theirs

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of every segment."""
        return segment_schema(self.card.dimension, self.metadata_schema, self.vector_type)

    def write(self, folder: Path) -> None:
        """Puts the identity on disk."""
        facts = {
            "version": GENERATION_VERSION,
            "collection": self.collection,
            "model": self.card.name,
            "fingerprint": self.card.fingerprint,
            "dimension": self.card.dimension,
            "vector_type": self.vector_type,
            "metadata_columns": self.metadata_schema.names,
            "created_at": self.created_at,
        }
        schema = self.schema.with_metadata({_FOOTER_KEY: json.dumps(facts).encode()})
        with committed(folder / FILE_NAME) as file:
            pq.write_table(schema.empty_table(), file)


def read_identity(folder: Path) -> Identity:
    """The identity of the generation in `folder`.

    Raises:
        StoreError: its `schema.parquet` is missing, damaged, or written by a newer Fletcher.
    """
    path = folder / FILE_NAME
    try:
        schema = pq.read_schema(path)
        facts = json.loads((schema.metadata or {})[_FOOTER_KEY])
        check_version(path, version_of(facts), GENERATION_VERSION)
        metadata = pa.schema([schema.field(name) for name in facts["metadata_columns"]])
        card = ModelCard(facts["model"], facts["fingerprint"], facts["dimension"])
        plain = pa.schema([pa.field(field.name, field.type) for field in metadata])
        return Identity(folder.name, facts["collection"], card, plain, facts["vector_type"], facts["created_at"])
    except (OSError, pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{str(path)!r} is missing or damaged ({error}): restore it, or move the folder {str(folder)!r} away; "
            "its rows are embedded again on the next run"
        ) from error

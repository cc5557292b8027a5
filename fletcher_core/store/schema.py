"""The columns of a segment, and the names that follow from what a generation holds.

Every Parquet file of a generation has the same Arrow schema: the bookkeeping columns below, the source's metadata
columns, and the vector last.
"""

import hashlib
import re
from pathlib import PurePath
from uuid import uuid4

import pyarrow as pa

from fletcher_core.errors import ConfigError
from fletcher_core.models.card import ModelCard
from fletcher_core.setting_values import VectorType

UPSERT, DELETE = "upsert", "delete"

ROW_FIELDS = (  # what a caller hands to `Generation.write_segment`, before metadata columns and vector
    pa.field("id", pa.string(), nullable=False),
    pa.field("op", pa.string(), nullable=False),
    pa.field("content_hash", pa.string()),
    pa.field("metadata_hash", pa.string()),
    pa.field("tokens", pa.int32()),
    pa.field("truncated", pa.bool_()),
    pa.field("replaces", pa.int64()),
)
STORE_FIELDS = (  # what the store adds
    pa.field("partition_key", pa.string(), nullable=False),
    pa.field("fingerprint", pa.string(), nullable=False),
    pa.field("sequence", pa.int64(), nullable=False),
    pa.field("segment", pa.string(), nullable=False),
    pa.field("embedded_at", pa.timestamp("us", tz="UTC"), nullable=False),
)
REPEATED_STRINGS = ("op", "partition_key", "fingerprint", "segment")  # worth a dictionary in Parquet

# Names that a metadata column cannot have: they mean something in segments, in snapshots or on the wire to Longbow.
RESERVED_COLUMNS = frozenset(
    [field.name for field in (*ROW_FIELDS, *STORE_FIELDS)]
    + ["vector", "key", "version", "partition", "text", "status", "file_row_number", "score"]
    + ["fletcher_kind", "fletcher_key", "fletcher_content", "fletcher_metadata"]
)


def segment_schema(dimension: int, metadata: pa.Schema, vector_type: VectorType) -> pa.Schema:
    """The Arrow schema of every segment of a generation."""
    element = pa.float16() if vector_type == "float16" else pa.float32()
    vector = pa.field("vector", pa.list_(element, dimension))
    return pa.schema([*ROW_FIELDS, *STORE_FIELDS, *metadata, vector])


def check_metadata_names(names: list[str] | tuple[str, ...]) -> None:
    """Raises `ConfigError` when a metadata column has a reserved name or occurs twice (letter case is ignored)."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in RESERVED_COLUMNS:
            raise ConfigError(
                f"metadata column {name!r} has a name that Fletcher needs for itself: give it another name through "
                f'query="SELECT *, {name} AS doc_{name.lower()} FROM ..."'
            )
        if name.lower() in seen:
            raise ConfigError(f"metadata column {name!r} is named twice in metadata_columns")
        seen.add(name.lower())


def check_text_name(kind: str, name: str) -> None:
    """Raises `ConfigError` when a name cannot be kept as text, as it holds half a character (a lone surrogate)."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the {kind} {name!r} is not valid Unicode ({error.reason}): give it another name") from error


def new_generation_name(collection: str, card: ModelCard) -> str:
    """`<collection>-<model>-<dimension>-<8 random hex digits>`: name of a folder and of a Longbow dataset.

    Random, because rows in Longbow are known by sequences that count from one in every store: two stores, or a store
    deleted and begun anew, must never meet in one dataset.
    """
    model = slug(PurePath(card.name).name or card.name)
    return f"{slug(collection)}-{model}-{card.dimension}-{uuid4().hex[:8]}"


def slug(name: str) -> str:
    """Lower-case letters, digits and underscores, at most 60: safe as a file name and as a Longbow dataset."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] or "x"


def folder_name(key: str) -> str:
    """A folder name for a partition or collection: readable where it can be, never the same for two keys.

    Keys that are not plain lower-case file names get a hash, as some file systems ignore letter case.
    """
    if not key:
        return "_"
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", key):
        return key
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{slug(key)}~{digest}"

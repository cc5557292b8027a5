"""What the vector store holds for one partition, in one scan: how many rows, and a version of their content.

The version is equal as long as the model, the rows and their texts are the same, however often they were written,
compacted or embedded again. Dagster takes it for the data version.
"""

import hashlib
from dataclasses import dataclass

import duckdb

from fletcher_core.errors import StoreError
from fletcher_core.sql import first_line, session
from fletcher_core.store.generation import Generation

_ATTEMPTS = 5  # another run may compact the files away between their naming and their opening


@dataclass(frozen=True)
class Content:
    """Live rows of a partition and the version of their content (16 hex digits)."""

    count: int
    version: str


def content_of(generation: Generation, partition_key: str) -> Content:
    """Counts and digests the live rows of `partition_key`.

    Raises:
        StoreError: the segments cannot be read.
    """
    # Exclusive or makes the digest independent of the order of rows; ids are unique, so none cancels another.
    content = "bit_xor(md5_number_lower(concat_ws(chr(31), id, content_hash, metadata_hash)))"
    for attempt in range(_ATTEMPTS):
        try:
            with session() as connection:
                count, digest = connection.execute(
                    f"SELECT count(*), {content} FROM ({generation.live_sql(partition_key)})"
                ).fetchall()[0]
            break
        except duckdb.IOException as error:
            if attempt + 1 == _ATTEMPTS:
                raise StoreError(f"the rows of {generation.name} cannot be read: {first_line(error)}") from error
    identity = f"{generation.name}/{count}/{digest}"
    return Content(count, hashlib.sha256(identity.encode()).hexdigest()[:16])

"""What the vector store holds for one partition, in one scan: how many rows, and a version of their content.

The version is equal as long as the model, the rows and their texts are the same, however often they were written,
compacted or embedded again. Dagster takes it for the data version.
"""

import hashlib
from dataclasses import dataclass

from fletcher_core.sql import session
from fletcher_core.store.generation import Generation


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

    def read() -> tuple[int, int | None]:
        with session() as connection:
            select = f"SELECT count(*), {content} FROM ({generation.live_sql(partition_key)})"
            found: tuple[int, int | None] = connection.execute(select).fetchall()[0]
        return found

    count, digest = generation.settled(read)
    identity = f"{generation.name}/{count}/{digest}"
    return Content(count, hashlib.sha256(identity.encode()).hexdigest()[:16])

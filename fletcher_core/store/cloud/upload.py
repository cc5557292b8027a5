"""For processes that write segment files for a run elsewhere: into the bucket, without opening the store.

Such a file counts once the run, which holds the partition's lock and gave out the label and the sequences, records it
with `Generation.adopt`.
"""

from functools import lru_cache
from pathlib import Path

from fletcher_core.addresses import checked_address
from fletcher_core.store.cloud.bucket import Bucket
from fletcher_core.store.cloud.objects import ObstoreObjects
from fletcher_core.store.cloud.settings import CloudSettings
from fletcher_core.store.schema import folder_name


def put_segment(address: str, generation: str, partition_key: str, label: str, data: bytes | Path) -> None:
    """Puts a finished segment file, or its bytes, under its final name. May be repeated.

    Args:
        address: of the store, as `VectorStore.open` got it.
        generation, partition_key, label: as the run that will record it says.

    Raises:
        ConfigError: obstore is not installed, or the address is none.
        StoreError: the object storage does not answer.
    """
    _bucket(checked_address(address)).put(f"{generation}/segments/{folder_name(partition_key)}/{label}.parquet", data)


@lru_cache(maxsize=8)
def _bucket(address: str) -> Bucket:
    return Bucket(address, ObstoreObjects(address), CloudSettings.from_environment().patience)

"""The vector store of a collection, on a local disk or on object storage: Parquet segments, a manifest, locks, a
quarantine.

It is the durable output, the record that change detection compares with, and the outbox for Longbow.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from fletcher_core.addresses import Where, checked_address, is_address
from fletcher_core.errors import ConfigError, StoreError
from fletcher_core.models.card import ModelCard
from fletcher_core.setting_values import VectorType
from fletcher_core.store import workspace
from fletcher_core.store.durable import TEMPORARY_SUFFIX, UnwritableError, make_directory
from fletcher_core.store.generation import Generation, open_generation
from fletcher_core.store.identity import FILE_NAME, Identity
from fletcher_core.store.locks import store_lock
from fletcher_core.store.manifest import MANIFEST_FILE, Manifest
from fletcher_core.store.place import LocalFolder, Place
from fletcher_core.store.quarantine import Quarantine
from fletcher_core.store.recovery import rebuild
from fletcher_core.store.schema import check_text_name, folder_name

_log = logging.getLogger(__name__)


class VectorStore:
    """Open one with `VectorStore.open`. Several collections and several processes may share a root."""

    def __init__(self, place: Place, collection: str, manifest: Manifest) -> None:
        self.place = place
        self.root = place.root
        self.collection = collection
        self.manifest = manifest
        self.quarantine = Quarantine(self.root / "quarantine" / folder_name(collection), place)

    @classmethod
    def open(cls, root: Where, *, collection: str) -> "VectorStore":
        """Opens or creates the store, and puts in order what killed runs left behind.

        Raises:
            ConfigError: no collection name, or one that is not valid Unicode; an address that cannot be one.
            StoreError: the folder or the object storage cannot be used, or files in it are damaged or of a newer
                version.

        A store on object storage has an address, as `s3://bucket/folder`. One on a disk that is full, read-only or
        not ours is opened for reading: writing raises.
        """
        if not collection:
            raise ConfigError("a vector store needs a collection name")
        check_text_name("collection", collection)
        if is_address(root):
            return cls._on_object_storage(checked_address(str(root)), collection)
        path = _resolved(root)
        try:
            make_directory(path)
            with store_lock(path).held("open", patience=60):
                manifest = _manifest(path)
        except UnwritableError as error:
            if not (path / MANIFEST_FILE).is_file():
                raise
            _log.warning("the vector store is opened for reading only: %s", error)
            return cls(LocalFolder(path), collection, Manifest(path, unwritable=error))
        except OSError as error:
            raise StoreError(f"cannot use {str(path)!r} as a vector store: {error}") from error
        store = cls(LocalFolder(path), collection, manifest)
        workspace.sweep(path)
        for name in manifest.generations(collection):
            store._generation(name).recover()
        return store

    @classmethod
    def _on_object_storage(cls, address: str, collection: str) -> "VectorStore":
        from fletcher_core.store.cloud.working_copy import open_working_copy

        place, manifest = open_working_copy(address)
        store = cls(place, collection, manifest)
        workspace.sweep(place.root)
        for name in manifest.generations(collection):
            place.recover_unused(manifest, name)
        return store

    @staticmethod
    def exists(root: Where) -> bool:
        """Whether `open` would find a store there rather than make one."""
        if is_address(root):
            from fletcher_core.store.cloud.working_copy import is_store

            return is_store(checked_address(str(root)))
        path = Path(root)
        return (path / MANIFEST_FILE).is_file() or any(path.glob(f"*/{FILE_NAME}"))

    def generation(
        self, card: ModelCard, metadata_schema: pa.Schema, vector_type: VectorType = "float32"
    ) -> Generation:
        """The generation for this model, metadata schema and vector type; created if need be.

        Each call returns an object of its own, with locks of its own.

        Raises:
            ConfigError: a metadata column has a reserved name, or the vector type is unknown.
        """
        identity = Identity.new(self.collection, card, metadata_schema, vector_type)
        if not self.place.holds_all:  # a lock costs requests there
            self.place.refresh(now=True)
            if (known := self._known(identity)) is not None:
                return known
        with self.place.lock("store.lock", f"the store at {self.place.address!r}").held("generation", patience=60):
            if (known := self._known(identity)) is not None:
                return known
            identity.write(self.root / identity.name)
            self.place.publish(self.root / identity.name / FILE_NAME)
            self.manifest.add_generation(identity.name, self.collection, identity.created_at)
        return Generation(self.place, self.manifest, identity)

    def _known(self, identity: Identity) -> Generation | None:
        """The generation that `identity` describes, if there is one."""
        known = (
            open_generation(self.place, self.manifest, name) for name in self.manifest.generations(self.collection)
        )
        return next((each for each in known if each.identity.describes(identity)), None)

    def generations(self) -> list[Generation]:
        """All of the collection's generations, the one written most recently first."""
        return [self._generation(name) for name in self.manifest.generations(self.collection)]

    def current(self) -> Generation | None:
        """The generation written most recently; None in a store without any."""
        names = self.manifest.generations(self.collection)
        return self._generation(names[0]) if names else None

    def named(self, generation_name: str) -> Generation:
        """The collection's generation of that name.

        Raises:
            StoreError: there is none.
        """
        if generation_name not in self.manifest.generations(self.collection):
            raise StoreError(f"collection {self.collection!r} has no generation {generation_name!r}")
        return self._generation(generation_name)

    def retire(self, generation_name: str, partition_key: str) -> None:
        """Drops a partition of an older generation, once the new one holds all of it.

        Raises:
            StoreLockedError: a run is writing it.
            StoreError: there is no such generation.
        """
        self.named(generation_name).drop(partition_key)

    @contextmanager
    def workspace(self, run_id: str) -> Iterator[Path]:
        """An empty folder of the run's own for the length of a `with` block."""
        with workspace.workspace(self.root, run_id) as folder:
            yield folder

    def close(self) -> None:
        """Closes the manifest."""
        self.place.close()
        self.manifest.close()

    def __enter__(self) -> "VectorStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _generation(self, name: str) -> Generation:
        return open_generation(self.place, self.manifest, name)


def _resolved(root: Where) -> Path:
    """The folder without symbolic links, so that all who reach a store by different paths name it alike."""
    path = Path(root).absolute()
    try:
        for part in (path, *path.parents):
            if part.is_symlink() and not os.path.exists(part):
                raise StoreError(
                    f"cannot use {str(path)!r} as a vector store: the symbolic link {str(part)!r} leads to "
                    f"{os.readlink(part)!r}, which does not exist or leads back to it. Make that folder, or mend the "
                    "link"
                )
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot use {str(path)!r} as a vector store: {error}. Give the path of a folder that can be"
        ) from error


def _manifest(root: Path) -> Manifest:
    """The caller holds the store's lock."""
    manifest = Manifest(root)  # first: a newer Fletcher's store is left as it is
    for leftover in (*root.glob(f"*{TEMPORARY_SUFFIX}"), *root.glob(f"*/{FILE_NAME}.*{TEMPORARY_SUFFIX}")):
        leftover.unlink(missing_ok=True)
    if manifest.next_sequence() is None:
        rebuild(root, manifest)
    return manifest

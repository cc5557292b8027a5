"""Object storage through obstore: one request a call, or as many as a large file takes, without a second attempt.

Names are paths below the address that was opened. Credentials are those of the environment, and are in no message.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fletcher_core.errors import ConfigError, StoreError
from fletcher_core.object_requests import client_options, reason


class ObjectExists(Exception):
    """There is an object of this name already."""


class ObjectRefused(Exception):
    """Asking again is of no use: the credentials, the bucket's name or the request are wrong."""


class ObjectFailed(Exception):
    """No answer, or that of a server in trouble: whether the request was carried out is not known."""


class Objects(Protocol):
    """What is needed of object storage. Calls raise the errors above, and FileNotFoundError for what is not there."""

    def create(self, name: str, data: bytes) -> None:
        """Puts an object unless there is one of this name: ObjectExists."""

    def put(self, name: str, data: bytes | Path) -> None:
        """Puts an object in the place of one of this name."""

    def get(self, name: str) -> bytes:
        """The object's bytes."""

    def download(self, name: str, target: Any) -> None:
        """Writes the object's bytes into the open file `target`."""

    def names(self, prefix: str, after: str = "") -> list[str]:
        """Names that begin with the folder `prefix`, sorted, of those above `after`."""

    def folders(self) -> list[str]:
        """Names of the folders at the top."""

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects; those that are not there are passed over."""


class ObstoreObjects:
    """Object storage at an address that obstore knows.

    Raises:
        ConfigError: obstore is not installed, or the environment has settings that it does not understand.
    """

    def __init__(self, address: str) -> None:
        self._process = os.getpid()
        try:
            self._obstore: Any = importlib.import_module("obstore")
            from_url = importlib.import_module("obstore.store").from_url
        except ImportError as error:
            raise ConfigError(
                f"a vector store at {address!r} needs the package obstore: install Fletcher's extra `cloud` ({error})"
            ) from error
        try:
            # Attempts are counted where it is known what a lost answer means.
            self._store: Any = from_url(
                address,
                client_options=client_options(),
                retry_config={"max_retries": 0},
            )
        except Exception as error:  # obstore's own, of many kinds
            raise ConfigError(f"object storage at {address!r} cannot be used: {reason(error)}") from error

    def create(self, name: str, data: bytes) -> None:
        """A conditional put: If-None-Match."""
        with self._explained():
            self._obstore.put(self._store, name, data, mode="create", use_multipart=False)

    def put(self, name: str, data: bytes | Path) -> None:
        """In parts where it is large."""
        with self._explained():
            self._obstore.put(self._store, name, data, max_concurrency=4)

    def get(self, name: str) -> bytes:
        """In one request."""
        with self._explained():
            return bytes(self._obstore.get(self._store, name).bytes())

    def download(self, name: str, target: Any) -> None:
        """In one request, piece by piece."""
        with self._explained():
            found = self._obstore.get(self._store, name)
            written = 0
            for piece in found.stream(min_chunk_size=4 << 20):
                written += target.write(piece)
            if written != found.meta["size"]:
                raise ObjectFailed(f"{written} of {found.meta['size']} bytes of {name!r} came")

    def names(self, prefix: str, after: str = "") -> list[str]:
        """A request for each 1000 names."""
        with self._explained():
            listed = self._obstore.list(self._store, prefix=prefix, **({"offset": after} if after else {}))
            return sorted(found["path"] for some in listed for found in some)

    def folders(self) -> list[str]:
        """In one request for each 1000."""
        with self._explained():
            return sorted(self._obstore.list_with_delimiter(self._store)["common_prefixes"])

    def delete(self, names: Sequence[str]) -> None:
        """A request for each 1000."""
        with self._explained():
            self._obstore.delete(self._store, list(names))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors without obstore's own behind them, whose texts repeat the request's signature and session token."""
        if self._process != os.getpid():
            raise StoreError(
                "a store on object storage was opened before this process was forked, and its connections do not "
                "survive that: open it in the process that uses it, or start processes by 'spawn' or 'forkserver'"
            )
        errors = self._obstore.exceptions
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise ObjectRefused("there is no such bucket") from None
            raise
        except (errors.AlreadyExistsError, errors.PreconditionError) as error:
            raise ObjectExists(reason(error)) from None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError, errors.InvalidPathError) as error:
            raise ObjectRefused(reason(error)) from None
        except StoreError:
            raise
        except (errors.BaseError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the file on this machine
                raise
            raise ObjectFailed(reason(error)) from None

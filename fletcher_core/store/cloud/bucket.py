"""Object storage that answers in the end: requests are made again, and what a lost answer hides is looked up.

In come names below the store's address, out comes what is there. A failure that outlasts the patience is a StoreError.
"""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fletcher_core.errors import StoreError
from fletcher_core.store.cloud.objects import ObjectExists, ObjectFailed, ObjectRefused, Objects
from fletcher_core.store.durable import committed

_T = TypeVar("_T")
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0


class Bucket:
    """`objects` at `address`, asked again for `patience` seconds. Safe to use from several threads."""

    def __init__(self, address: str, objects: Objects, patience: float) -> None:
        self.address = address
        self._objects = objects
        self._patience = patience

    def create(self, name: str, data: bytes) -> bool:
        """Puts an object that is not there yet; whether it is ours that is there now.

        `data` must be like no other's: that is how our own put, whose answer was lost, is told from somebody else's.

        Raises:
            StoreError: it is not known whether the put was carried out, or yet will be.
        """
        attempts = _Attempts(self, f"put {name!r}")
        while True:
            try:
                self._objects.create(name, data)
                return True
            except ObjectExists as error:
                failure: Exception = error
            except ObjectRefused as error:
                raise self._refused(f"put {name!r}", error) from error
            except ObjectFailed as error:
                failure = error
            try:
                return self._objects.get(name) == data
            except ObjectRefused as error:
                raise self._refused(f"get {name!r}", error) from error
            except ObjectFailed as error:
                failure = error
            except FileNotFoundError:  # though it may be on its way: the same put again can do no harm
                pass
            attempts.wait(failure)

    def put(self, name: str, data: bytes | Path) -> None:
        """Puts an object, in the place of one of this name."""
        self._again(f"put {name!r}", lambda: self._objects.put(name, data))

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None when there is none."""
        try:
            return self._again(f"get {name!r}", lambda: self._objects.get(name))
        except FileNotFoundError:
            return None

    def fetch(self, name: str, path: Path) -> None:
        """Puts an object's bytes into the file `path`, which appears whole or not at all.

        Raises:
            FileNotFoundError: there is no such object.
        """

        def once() -> None:
            with committed(path) as file:
                try:
                    self._objects.download(name, file)
                except FileNotFoundError as error:
                    missing.append(error)
                    raise ObjectExists from error  # not an OSError, which `committed` takes for the disk's

        missing: list[FileNotFoundError] = []
        try:
            self._again(f"get {name!r}", once)
        except ObjectExists as error:
            raise FileNotFoundError(f"there is no {name!r} in {self.address}") from error

    def names(self, folder: str, after: str = "") -> list[str]:
        """Names of the objects in a folder, sorted, of those above `after`."""
        return self._again(f"list {folder!r}", lambda: self._objects.names(folder, after))

    def folders(self) -> list[str]:
        """Names of the folders at the top."""
        return self._again("list the folders", self._objects.folders)

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects; those that are not there are passed over."""
        if names:
            self._again(f"delete {names[0]!r}", lambda: self._objects.delete(names))

    def _again(self, what: str, call: Callable[[], _T]) -> _T:
        attempts = _Attempts(self, what)
        while True:
            try:
                return call()
            except ObjectRefused as error:
                raise self._refused(what, error) from error
            except ObjectFailed as error:
                attempts.wait(error)

    def _refused(self, what: str, error: Exception) -> StoreError:
        return StoreError(
            f"object storage at {self.address} refuses to {what}: {error}. Look at the bucket's name and at the "
            "credentials in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the like)"
        )


class _Attempts:
    """Waits longer and longer between attempts, and fails once the patience is at its end."""

    def __init__(self, bucket: Bucket, what: str) -> None:
        self._bucket = bucket
        self._what = what
        self._deadline = time.monotonic() + bucket._patience
        self._wait = _FIRST_WAIT

    def wait(self, failure: Exception) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise StoreError(
                f"object storage at {self._bucket.address} did not {self._what} within {self._bucket._patience:g} s: "
                f"{failure}. What was committed is there; run again when it answers, or set "
                "FLETCHER_CLOUD_PATIENCE to wait longer (seconds)"
            ) from failure
        time.sleep(min(left, self._wait * random.uniform(0.5, 1.0)))
        self._wait = min(_LONGEST_WAIT, 2 * self._wait)

"""Locks between machines: leases in the log, on top of the locks between the processes of a machine.

Whether a lease counts is decided by the log alone: a change carries the token of the lease that it was made under, and
is refused once another has taken it. That its holder is alive shows in an object of its session, which is put again and
again; who waits for it to change measures the time on its own clock.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from uuid import uuid4

from fletcher_core.errors import StoreError, StoreLockedError
from fletcher_core.store.cloud.bucket import Bucket
from fletcher_core.store.cloud.changes import Lease, LeaseHeld
from fletcher_core.store.cloud.log import ManifestLog
from fletcher_core.store.locks import FileLock
from fletcher_core.store.operations import Operation

_BEATS = 6  # in the time after which a lease counts as lost
_LOOKS = 20
_LOG = logging.getLogger(__name__)


class Session:
    """One opened store, which renews the leases that it holds as long as its process lives.

    `unsettled` are the leases that it holds after somebody who did not end in order.

    Args:
        copy: id of the working copy.
        seconds: that a lease which is not renewed lasts.
    """

    def __init__(self, bucket: Bucket, log: ManifestLog, copy: str, seconds: float) -> None:
        self.id = uuid4().hex
        self.copy = copy
        self.unsettled: set[str] = set()
        self._bucket = bucket
        self._log = log
        self._seconds = seconds
        self._number = 0
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def take(self, name: str, run_id: str, *, instead_of: Lease | None = None) -> None:
        """Takes a lease that is free, or whose holder, `instead_of`, is dead. Raises LeaseHeld, StoreError."""
        lease = Lease(name, uuid4().hex, self.id, self.copy, run_id, socket.gethostname(), os.getpid())
        arguments = {"lease": asdict(lease), "instead_of": None if instead_of is None else instead_of.token}
        if self._log.perform(Operation("acquire", arguments)):
            self.unsettled.add(name)
        self._log.held[name] = lease.token
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="fletcher-leases", daemon=True)
                self._thread.start()
        self._wake.set()
        if instead_of is not None and instead_of.session != self.id:
            self._forget(instead_of.session)

    def end(self, name: str, *, in_order: bool) -> None:
        """Lets go of a lease. Where the storage does not answer it is lost in time, as it is not renewed any more."""
        token = self._log.held.pop(name)
        try:
            self._log.perform(Operation("release", {"name": name, "token": token, "in_order": in_order}))
        except StoreError as error:
            _LOG.warning("the lock %s is still held for others, for %g s at most: %s", name, self._seconds, error)

    def is_lost(self, lease: Lease) -> bool:
        """Whether a lease's holder is not heard of for as long as a lease lasts; returns as soon as it is."""
        started = time.monotonic()
        first = self._heard(lease)
        while time.monotonic() - started < self._seconds:
            time.sleep(self._seconds / _LOOKS)
            now = self._heard(lease)
            if now is not None and now != first:
                return False
        return True

    def close(self) -> None:
        """Renews nothing any more."""
        if self._thread is not None:
            self._ended.set()
            self._wake.set()
            self._thread.join()
            self._forget(self.id)

    def _forget(self, session: str) -> None:
        try:
            self._bucket.delete([self._name(session)])
        except StoreError as error:
            _LOG.warning("the object of an ended session stays: %s", error)

    def _heard(self, lease: Lease) -> int | None:
        """The number of the last renewal that a lease was in; None when there is none."""
        data = self._bucket.get(self._name(lease.session))
        content = json.loads(data) if data else {"tokens": []}
        return content["number"] if lease.token in content["tokens"] else None

    def _renew(self) -> None:
        while not self._ended.is_set():
            self._number += 1
            content = {"number": self._number, "tokens": sorted(self._log.held.values())}
            try:
                self._bucket.put(self._name(self.id), json.dumps(content).encode())
            except StoreError as error:
                _LOG.warning("leases are not renewed: %s", error)
            self._log.look_for_store()
            self._wake.wait(self._seconds / _BEATS)
            self._wake.clear()  # before `held` and `_ended` are looked at again

    @staticmethod
    def _name(session: str) -> str:
        return f"sessions/{session}.json"


class LeasedLock:
    """A lock among all machines: the local lock first, then the lease `name`; as `FileLock` to its holder."""

    def __init__(self, local: FileLock, name: str, subject: str, session: Session) -> None:
        self._local = local
        self._name = name
        self._subject = subject
        self._session = session
        self._is_held = False

    @contextmanager
    def held(self, run_id: str, *, patience: float = 0.0) -> Iterator[None]:
        """`acquire` and `release` around a `with` block; one that raises leaves the lease not in order."""
        self.acquire(run_id, patience=patience)
        in_order = False
        try:
            yield
            in_order = True
        finally:
            self.release(in_order=in_order)

    def acquire(self, run_id: str, *, patience: float = 0.0) -> None:
        """Takes the lock. That a run on another machine is alive is known after a sixth of a lease's time; that it is
        dead, after a whole one.

        Raises:
            StoreLockedError: someone else holds it; names the run, the process and the machine.
            StoreError: the object storage does not answer.
        """
        deadline = time.monotonic() + patience
        self._local.acquire(run_id, patience=patience)
        try:
            while (lease := self._take(run_id)) is not None:
                if self._session.is_lost(lease):
                    if self._take(run_id, instead_of=lease) is None:
                        return
                elif time.monotonic() >= deadline:
                    raise StoreLockedError(
                        f"{self._subject} is in use by {lease.holder}: let that run end, or end it, then try again"
                    )
        except BaseException:
            self._local.release()
            raise

    def try_acquire(self, run_id: str) -> bool:
        """Takes the lock if it is free, or its holder's process on this machine is dead."""
        if not self._local.try_acquire(run_id):
            return False
        taken = False
        try:
            taken = self._take(run_id) is None
        finally:
            if not taken:
                self._local.release()
        return taken

    def release(self, *, in_order: bool = True) -> None:
        """Lets go of the lock; nothing happens when it is not held."""
        if not self._is_held:
            return
        self._is_held = False
        try:
            self._session.end(self._name, in_order=in_order)
        finally:
            self._local.release()

    def _take(self, run_id: str, instead_of: Lease | None = None) -> Lease | None:
        """None when it is ours now, else whose it is."""
        while True:
            try:
                self._session.take(self._name, run_id, instead_of=instead_of)
                self._is_held = True
                return None
            except LeaseHeld as held:
                # We have the lock that a holder with this working copy would have, too: that process is dead.
                if held.lease.copy != self._session.copy:
                    return held.lease
                instead_of = held.lease

"""A generation's way to one Longbow server: committed segments in, rows read back from the server out.

Longbow's OK means little, so the ledger in the manifest moves on in steps that are each seen on the server: 'sending'
before a put, 'sent' after its OK, 'applied' when all its ids are read back, 'searchable' when the index has grown by
as many. Several segments are on their way at once, so that the link does not idle while one is read from disk or read
back; each keeps to its own steps. One call here is one piece of work; `Sender` calls from a thread of its own.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.errors import LongbowUnavailable
from fletcher_core.longbow.breaker import Proof
from fletcher_core.longbow.client import LongbowClient, PutResult, Readiness
from fletcher_core.longbow.lanes import side_by_side
from fletcher_core.longbow.transport import check_searchable, check_unchanged
from fletcher_core.longbow.wire import blocks, split_table, wire_ids, wire_table
from fletcher_core.store.generation import Generation
from fletcher_core.store.manifest import DELIVERED, STATES, Delivery, State, delivery_lock
from fletcher_core.store.segments import Segment
from fletcher_core.telemetry.stages import Busy, observed, unwatched

_PROBE_AGAIN = (0.1, 0.2)
_QUICK = 0.5  # seconds within which a refusal may be one that gRPC repeats
_READ_AGAIN = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# Segments that are read back at once where only ids come: a scan costs the server much the same for one or for some.
_READ_TOGETHER = 8


@dataclass(frozen=True)
class _Sent:
    """A segment whose puts the server said OK to, and the ids that it must hold now, uint64."""

    label: str
    ids: npt.NDArray[np.uint64]


@dataclass
class Traffic:
    """What one outbox has done so far; bytes are Arrow buffer bytes before compression and gRPC."""

    puts: int = 0
    rows: int = 0
    bytes: int = 0


class Outbox:
    """Delivers `generation` through `client`. For one thread; several processes may do the same side by side.

    `replaced` has, of each segment delivered, the sequences that its rows supersede, for whoever retires them.
    `stuck` says why applied rows do not become searchable, when waiting will not help.
    `busy` is told when a put or a reading back was at work ("send").
    `pause(seconds)` waits and returns True when the work is to end. Calls raise what the client and the store raise.
    """

    def __init__(
        self,
        generation: Generation,
        client: LongbowClient,
        *,
        pause: Callable[[float], bool],
        patience: float,
        slow_down_pause: float,
        busy: Busy = unwatched,
    ) -> None:
        self.target = client.address.target
        self.traffic = Traffic()
        self.stuck = ""
        self.replaced: dict[str, npt.NDArray[np.int64]] = {}
        self._generation = generation
        self._manifest = generation.manifest
        self._client = client
        self._pause = pause
        self._patience = patience
        self._slow_down_pause = slow_down_pause
        self._busy = observed(busy)
        self._counting = threading.Lock()  # guards traffic, what is expected, and when to go on
        self._ids_only = False
        self._expected = 0
        self._resume_at = 0.0
        self._short_since: float | None = None
        self._lock = generation.place.lock(delivery_lock(self.target), f"the delivery to Longbow at {self.target}")

    def connect(self) -> bool:
        """Compare server and ledger: what the server lost is put back to the undelivered.

        False when another process is delivering to this server just now, as in `deliver`. Raises LongbowRejected when
        the server cannot search vectors of our transport, or holds this dataset in another.
        """
        transport = self._client.settings.transport
        server = self._probe()
        check_searchable(transport, server.vector_types, self.target)
        self._ids_only = server.scan_columns
        if not self._lock.try_acquire("sender"):
            return False
        try:
            settled = self._settled_readiness()
            check_unchanged(transport, settled.vector_type, self._generation.name, self.target)
            index_len = settled.index_len
            if index_len is None:
                self._manifest.reset_deliveries(self.target, self._generation.name)
            elif not (ledger := self._deliveries()):
                # The server knows rows of ours that no ledger knows (a manifest made anew, a server that moved to
                # another port): as 'sending', each segment is read back before anything of it is sent again.
                for segment in self.undelivered():
                    self._record(segment.label, "sending")
            elif index_len < sum(delivery.rows for delivery in ledger if delivery.state in DELIVERED):
                self._verify()
        finally:
            self._lock.release()
        self._expected, self._short_since, self.stuck = index_len or 0, None, ""
        return True

    def _probe(self) -> Readiness:
        """See that the server answers. After a failure gRPC repeats it for a moment, so ask more than once.

        Who has waited for an answer in vain is not made to wait again, nor is a server asked that is known to be down.
        """
        started = time.monotonic()
        for wait in _PROBE_AGAIN:
            try:
                return self._client.readiness()
            except LongbowUnavailable:
                waited = time.monotonic() - started >= _QUICK
                if waited or self._client.breaker.state == "open" or self._pause(wait):
                    raise
        return self._client.readiness()

    def undelivered(self) -> list[Segment]:
        """Segments that the server was not seen to hold, in sequence order."""
        return self._manifest.undelivered(self.target, self._generation.name)

    def deliver(self, segments: Sequence[Segment]) -> bool:
        """Bring segments to 'applied', as many at once as the client's settings have streams.

        False when another process is delivering to this server just now. The work ends early when `pause` says so, and
        after a failure, once the calls that are under way have ended; it is raised. Raises LongbowUnavailable also when
        rows cannot be read back after the put's OK: they are then sent again.
        """
        if not self._lock.try_acquire("sender"):
            return False
        # Where whole rows come back, each segment's come beside the puts of others.
        together = _READ_TOGETHER if self._ids_only else 1
        try:
            if self._client.breaker.is_on_trial:  # one put is to decide, before several are on their way
                self._deliver_some(segments[:1])
                segments = segments[1:]
            if together == 1:
                side_by_side(lambda segment: self._deliver_some([segment]), segments, self._client.settings.streams)
            else:
                for start in range(0, len(segments), together):
                    self._deliver_some(segments[start : start + together])
        finally:
            self._lock.release()
        return True

    def _deliver_some(self, segments: Sequence[Segment]) -> None:
        """Send segments, then read all of them back at once."""
        sent: list[_Sent] = []

        def send(segment: Segment) -> None:
            delivery = self._manifest.delivery(self.target, segment.label)
            if delivery.state not in DELIVERED and not self._pause(0.0):
                sent.append(self._send(segment.label, delivery))

        side_by_side(send, segments, self._client.settings.streams)
        self._read_back(sorted(sent, key=lambda one: one.label))

    def _send(self, label: str, delivery: Delivery) -> _Sent:
        segment = self._generation.read_segment(label)
        self.replaced[label] = segment["replaces"].drop_null().to_numpy()
        rows = wire_table(segment, self._client.settings.transport)
        wanted = rows["id"].to_numpy()
        present = np.empty(0, np.uint64)
        if delivery.state != "pending" and len(wanted):
            present = self._present(label)
        missing = rows if not len(present) else rows.filter(pa.array(~np.isin(wanted, present)))
        self._record(label, "sending", rows=len(present))
        self._put(missing)
        self._record(label, "sent", rows=len(present) + missing.num_rows, bytes=delivery.bytes + missing.nbytes)
        return _Sent(label, wanted)

    def _put(self, rows: pa.Table) -> None:
        """Put the rows in blocks; the connection's expectation of the index grows with every OK."""
        settings = self._client.settings
        for block in blocks(rows):
            for piece in split_table(block, max_rows=settings.max_put_rows, max_bytes=settings.max_put_bytes):
                self._hold_back()
                started = time.perf_counter()
                self._count(self._client.put(self._generation.name, piece))
                self._busy("send", started, time.perf_counter())

    def _hold_back(self) -> None:
        """Wait as long as the server has asked for: all streams do, whichever of them it has told."""
        while (wait := self._resume_at - time.monotonic()) > 0 and not self._pause(wait):
            continue

    def _count(self, result: PutResult) -> None:
        """Take a put's OK into account."""
        with self._counting:
            self.traffic.puts += 1
            self.traffic.rows += result.rows
            self.traffic.bytes += result.bytes
            self._expected += result.rows
            if result.slow_down:
                self._resume_at = time.monotonic() + self._slow_down_pause

    def _read_back(self, sent: Sequence[_Sent]) -> None:
        """Read until every id is there, and record each segment as applied with the number of copies seen."""
        started = time.monotonic()
        waiting = [one for one in sent if len(one.ids)]
        for one in sent:
            if not len(one.ids):
                self._record(one.label, "applied", rows=0)
        for wait in itertools.chain(_READ_AGAIN, itertools.repeat(_READ_AGAIN[-1])):
            if not waiting:
                return
            present = self._present(waiting[0].label, waiting[-1].label)
            short: list[tuple[_Sent, int]] = []
            for one in waiting:
                found = present[np.isin(present, one.ids)]
                if missing := int(np.count_nonzero(~np.isin(one.ids, found))):
                    short.append((one, missing))
                else:
                    self._record(one.label, "applied", rows=len(found))
            waiting = [one for one, _ in short]
            waited = time.monotonic() - started
            if not waiting:
                self._client.breaker.prove(Proof.KEEPS_ROWS)
            elif waited > self._patience or self._pause(wait):
                break
        one, missing = short[0]
        failure = (
            f"Longbow at {self.target} said OK to segment {one.label} of dataset {self._generation.name!r}, but "
            f"{missing} of its {len(one.ids)} rows cannot be read back after {waited:.1f} s; it may be over its "
            "LONGBOW_MAX_MEMORY. They are sent again later"
        )
        if waited > self._patience:
            self._client.breaker.trip(Proof.KEEPS_ROWS, failure)
        raise LongbowUnavailable(failure)

    def _present(self, label: str, last: str = "") -> npt.NDArray[np.uint64]:
        """Ids on the server of a segment, or of all from `label` to `last`."""
        started = time.perf_counter()
        try:
            last = "" if last == label else last
            return self._client.present_ids(self._generation.name, label, last, ids_only=self._ids_only)
        finally:
            self._busy("send", started, time.perf_counter())

    def applied(self) -> list[str]:
        """Labels that were read back and are not yet searchable."""
        return self._manifest.labels_in(self.target, self._generation.name, "applied")

    def _verify(self) -> bool:
        """Read every delivered segment back; whether rows were missing, whose segments are undelivered again."""
        found_missing = False
        for delivery in self._deliveries():
            if delivery.state in DELIVERED and not self._pause(0.0):
                wanted = wire_ids(self._generation.read_segment(delivery.label))
                present = self._present(delivery.label) if len(wanted) else np.empty(0, np.uint64)
                is_missing = not np.isin(wanted, present).all()
                found_missing |= is_missing
                self._record(delivery.label, "sending" if is_missing else delivery.state, rows=len(present))
        return found_missing

    def check_index(self) -> bool:
        """Record the applied segments as searchable once the index holds them; True when there is nothing to wait for.

        Where the index stays too short while the server says READY, the segments are read back, and if all is there
        they are left at 'applied', with the reason in `stuck`.
        """
        waiting = self.applied()
        if not waiting:
            return True
        ready = self._client.readiness(self._generation.name)
        index_len = ready.index_len or 0
        expected = max(self._expected, self._manifest.rows_delivered(self.target, self._generation.name))
        if ready.status == "BUSY":
            self._short_since = None
            return False
        if index_len >= expected:
            for label in waiting:
                self._record(label, "searchable")
            self._short_since, self.stuck = None, ""
            return True
        return self._has_lasted() and self._explain_short_index(index_len, expected)

    def _has_lasted(self) -> bool:
        """Whether the index has been short for as long as our patience."""
        now = time.monotonic()
        if self._short_since is None:
            self._short_since = now
        return now - self._short_since >= self._patience

    def _explain_short_index(self, index_len: int, expected: int) -> bool:
        """Lost rows are to be sent again: False. All there, but not indexed: True, as waiting will not help."""
        if not self._lock.try_acquire("sender"):
            return False
        try:
            found_missing = self._verify()
        finally:
            self._lock.release()
        self._short_since = None
        if found_missing:
            self._expected = index_len
            return False
        self.stuck = (
            f"Longbow at {self.target} says it is ready, but its index of dataset {self._generation.name!r} holds "
            f"{index_len} of {expected} rows, so searches miss some. Start it with LONGBOW_AUTO_SHARDING_ENABLED=false"
        )
        return True

    def state_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Segments and rows of the generation by how far they have come."""
        counts = self._manifest.delivery_counts(self.target, self._generation.name)
        segments = {str(state): counts.get(state, (0, 0))[0] for state in STATES}
        rows = {str(state): counts.get(state, (0, 0))[1] for state in STATES}
        return segments, rows

    def _settled_readiness(self) -> Readiness:
        """The server's word on the dataset once it is not BUSY, or after our patience.

        `index_len` is None when it has no such dataset, else a number.
        """
        started = time.monotonic()
        while True:
            ready = self._client.readiness(self._generation.name)
            if ready.status == "NOT_FOUND":
                return replace(ready, index_len=None)
            if ready.status == "READY" or time.monotonic() - started > self._patience or self._pause(0.1):
                return replace(ready, index_len=ready.index_len or 0)

    def _deliveries(self) -> list[Delivery]:
        return self._manifest.deliveries(self.target, self._generation.name)

    def _record(self, label: str, state: State, *, rows: int | None = None, bytes: int | None = None) -> None:
        self._manifest.record_delivery(self.target, label, state, rows=rows, bytes=bytes)

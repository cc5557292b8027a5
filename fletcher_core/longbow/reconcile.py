"""Store and server compared row by row: what the server lost is sent again, what it should not show is deleted again.

In: a generation and a client. Out: figures, and whether every live row of the store is on the server and searchable.
Nothing is taken from the ledger: ids are read back, before and after.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import LongbowNotFound, LongbowUnavailable
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.drain import drain
from fletcher_core.longbow.retirement import holders, live_sequences
from fletcher_core.longbow.sender import Sender, SenderSettings
from fletcher_core.longbow.wire import BLOCK_ROWS
from fletcher_core.store.generation import Generation
from fletcher_core.store.manifest import DELIVERED, SEQUENCE_LIMIT
from fletcher_core.store.segments import Segment

_T = TypeVar("_T")
_PATIENCE = 10.0  # seconds of failures in a row
_PAUSE = 0.1
_SCANNED_TOGETHER = 8  # segments, where only ids travel


@dataclass(frozen=True)
class ReconcileReport:
    """What was compared, found and done; rows, where nothing else is said.

    The first figures are of the comparison, before anything was done: `rows` live ones in the store in `segments`
    segments; of these `missing` on the server; `on_server`, all that it holds, among them `repeated`, further copies of
    live rows, `superseded`, which the store has replaced or deleted since, and `unknown`, of no segment of the store.
    Done: `sent` in all, `deleted` delete calls that hit a row, `kept`, outdated rows that could not be deleted: the
    last of their stored batch, or forgotten by id since the server was started again.
    At the end: `still_missing`, `index_len`, rows that searches look at, and `problem`, '' when there is none.
    """

    dataset: str
    target: str
    segments: int
    rows: int
    on_server: int
    missing: int
    repeated: int
    superseded: int
    unknown: int
    sent: int = 0
    deleted: int = 0
    kept: int = 0
    still_missing: int = 0
    index_len: int = 0
    problem: str = ""

    @property
    def surplus(self) -> int:
        """Rows on the server beyond one copy of each live row."""
        return self.repeated + self.superseded + self.unknown

    @property
    def balances(self) -> bool:
        """Whether every live row of the store is on the server and searchable."""
        return not self.still_missing and not self.problem


def reconcile(
    generation: Generation,
    client: LongbowClient,
    *,
    dry_run: bool = False,
    timeout: float | None = None,
    settings: SenderSettings | None = None,
    progress: Callable[[str], None] | None = None,
) -> ReconcileReport:
    """Bring the server to what the store says; with `dry_run`, only compare.

    Rows are sent for as long as it takes, at most `timeout` seconds. Runs may go on meanwhile. Deletes are cosmetic on
    Longbow, as its searches show deleted rows all the same; `fletcher search` never does.

    Raises LongbowUnavailable when the server is down for longer than a moment, LongbowRejected when it refuses rows for
    good, and StoreError.
    """
    say = progress or (lambda text: None)
    found = _compare(generation, client, say)
    report = ReconcileReport(
        dataset=generation.name,
        target=client.address.target,
        segments=len(found.segments),
        rows=len(found.live),
        on_server=len(found.ids),
        missing=len(found.missing),
        repeated=found.repeated,
        superseded=found.superseded,
        unknown=found.unknown,
        still_missing=len(found.missing),
    )
    if dry_run:
        return _with_index(report, found, client, 0.0)
    _mark_missing(generation, client.address.target, found)
    sender_settings = replace(settings or SenderSettings(), raise_on_failure=True)
    with Sender(generation, client, sender_settings) as sender:
        delivery = drain(sender, timeout=timeout, progress=lambda report: say(f"{report.rows_sent} rows sent"))
    found = _compare(generation, client, say)
    deleted, kept = _delete_outdated(generation.name, client, found, say)
    report = replace(
        report,
        sent=delivery.rows_sent,
        deleted=deleted,
        kept=kept,
        still_missing=len(found.missing),
        problem=delivery.unavailable or delivery.not_searchable,
    )
    return _with_index(report, found, client, sender_settings.patience)


@dataclass(frozen=True)
class _Comparison:
    """The store's segments and live rows, and what the server holds.

    `live` int64 is sorted; of each row on the server, `ids` int64 has its id and `blocks` int64 tells its stored batch.
    """

    segments: list[Segment]
    live: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]

    @cached_property
    def is_live(self) -> npt.NDArray[np.bool_]:
        """Of each row on the server, whether it is current."""
        return np.isin(self.ids, self.live)

    @cached_property
    def is_known(self) -> npt.NDArray[np.bool_]:
        """Of each row on the server, whether a segment of the store has, or had, its id."""
        return holders(self.segments, self.ids) >= 0

    @cached_property
    def missing(self) -> npt.NDArray[np.int64]:
        """Live rows that the server does not hold."""
        return self.live[~np.isin(self.live, self.ids)]

    @property
    def repeated(self) -> int:
        """Rows on the server that are further copies of live ones."""
        return int(self.is_live.sum()) - len(np.unique(self.ids[self.is_live]))

    @property
    def superseded(self) -> int:
        return int((~self.is_live & self.is_known).sum())

    @property
    def unknown(self) -> int:
        return int((~self.is_live & ~self.is_known).sum())

    def deletable(self) -> tuple[npt.NDArray[np.int64], int]:
        """Ids of outdated rows, and how many are not among them as their stored batch would have no row left.

        Longbow fails for good at a scan of such a batch, so of one without a live row the newest is kept.
        """
        outdated = np.unique(np.stack([self.blocks, self.ids])[:, ~self.is_live], axis=1)
        blocks, ids = outdated
        is_newest = np.append(blocks[1:] != blocks[:-1], True)[: len(ids)]
        last_of_batch = ids[is_newest & ~np.isin(blocks, self.blocks[self.is_live])]
        kept = np.isin(ids, last_of_batch)  # in every batch: who knows which of an id's copies a delete hits
        return ids[~kept], int(kept.sum())


def _compare(generation: Generation, client: LongbowClient, say: Callable[[str], None]) -> _Comparison:
    """Read the server's ids, and then what is live: a row that a run adds meanwhile counts neither here nor there."""
    segments = generation.segments()
    ids_only = _patiently(client.readiness, client).scan_columns
    labels = [segment.label for segment in segments]
    bounds = labels[_SCANNED_TOGETHER - 1 : -1 : _SCANNED_TOGETHER] if ids_only else labels[:-1]
    ids, blocks, seen = [], [], 0
    # Ranges of labels that leave nothing out, so that rows of segments which the store no longer has are found, too.
    ranges = list(itertools.pairwise(["", *bounds, ""]))
    for place, (low, high) in enumerate(ranges):
        filters = [("segment", ">" if low else ">=", low), *([("segment", "<=", high)] if high else [])]
        rows = _patiently(partial(client.labelled_ids, generation.name, filters, ids_only=ids_only), client)
        column = rows["segment"].combine_chunks()
        ids.append(rows["id"].to_numpy().astype(np.int64))
        batch = column.indices.to_numpy(zero_copy_only=False).astype(np.int64) + seen
        blocks.append(batch * (SEQUENCE_LIMIT // BLOCK_ROWS) + ids[-1] // BLOCK_ROWS)
        seen += len(column.dictionary)
        say(f"{place + 1} of {len(ranges)} parts of the server's rows compared")
    found = _Comparison(segments, live_sequences(generation), np.concatenate(ids), np.concatenate(blocks))
    committed_before = holders(found.segments, found.live) >= 0
    late = np.isin(found.ids, found.live[~committed_before])
    return replace(found, live=found.live[committed_before], ids=found.ids[~late], blocks=found.blocks[~late])


def _mark_missing(generation: Generation, target: str, found: _Comparison) -> None:
    """Tell the ledger which segments the server has lost rows of: as 'sending' they are read back, then completed."""
    for place in np.unique(holders(found.segments, found.missing)).tolist():
        label = found.segments[place].label
        if generation.manifest.delivery(target, label).state in DELIVERED:
            generation.manifest.record_delivery(target, label, "sending")


def _delete_outdated(
    dataset: str, client: LongbowClient, found: _Comparison, say: Callable[[str], None]
) -> tuple[int, int]:
    """How many rows were deleted, and how many could not be."""
    ids, kept = found.deletable()
    deleted = 0
    for place, row in enumerate(ids.tolist()):
        try:
            _patiently(partial(client.delete, dataset, row), client)
            deleted += 1
        except LongbowNotFound:  # known to the server, but not by its id since it was started again
            kept += 1
        say(f"{place + 1} of {len(ids)} outdated rows deleted")
    return deleted, kept


def _with_index(report: ReconcileReport, found: _Comparison, client: LongbowClient, patience: float) -> ReconcileReport:
    """The report with the server's word on its index, once it holds every row or has not grown for `patience` s."""
    grown_at, index_len = time.monotonic(), 0
    while True:
        ready = _patiently(partial(client.readiness, report.dataset), client)
        if (ready.index_len or 0) > index_len:
            grown_at, index_len = time.monotonic(), ready.index_len or 0
        if index_len >= len(found.ids) or time.monotonic() - grown_at >= patience:
            break
        time.sleep(_PAUSE)
    problem = report.problem
    if not problem and index_len < len(found.ids):
        problem = (
            f"Longbow at {report.target} holds {len(found.ids)} rows of dataset {report.dataset!r}, but its index "
            f"{index_len}, so searches miss some. If that lasts, start it with LONGBOW_AUTO_SHARDING_ENABLED=false"
        )
    return replace(report, index_len=index_len, problem=problem)


def _patiently(call: Callable[[], _T], client: LongbowClient) -> _T:
    """The result of a call, tried again while the server fails, for a moment."""
    started = time.monotonic()
    while True:
        try:
            return call()
        except LongbowUnavailable:
            pause = max(_PAUSE, client.breaker.seconds_until_try)
            if time.monotonic() + pause - started > _PATIENCE:
                raise
            time.sleep(pause)

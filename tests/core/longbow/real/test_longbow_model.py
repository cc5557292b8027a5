"""Any sequence of puts, updates, deletes, compactions and restarts looks like an upsert to a user.

`FLETCHER_LONGBOW_EXAMPLES` multiplies the number of sequences that are tried (1).
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from committed_rows import QUICK, CommittedRows, drained
from conftest import Served, start_server
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fletcher_core.errors import LongbowNotFound, LongbowUnavailable
from fletcher_core.longbow.reconcile import reconcile
from fletcher_core.longbow.sender import Sender

_SCALE = float(os.environ.get("FLETCHER_LONGBOW_EXAMPLES", "1"))
_ROWS = [f"row {number}" for number in range(8)]
_PARTITIONS = ["", "monday"]


class Upserts(RuleBasedStateMachine):
    """A sender runs all the time; rows are committed and the server is ended meanwhile."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="longbow-model-"))
        self.committed = CommittedRows(self.folder / "store")
        self.served: Served | None = None

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.served = start_server(self.kind, self.folder / "server")
        self.client = self.served.client(put_timeout=5.0)
        self.sender = Sender(self.committed.generation, self.client, QUICK).start()
        self.partitions: dict[str, str] = {}

    def teardown(self) -> None:
        if self.served is not None:
            try:
                self.deliver()
            finally:
                self.sender.close()
                self.client.close()
                self.served.process.kill()
        self.committed.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(rows=st.sets(st.sampled_from(_ROWS), min_size=1, max_size=5), partition=st.sampled_from(_PARTITIONS))
    def put(self, rows: set[str], partition: str) -> None:
        """New rows and new versions of rows; a row stays in the partition that it came to first."""
        new = [row for row in sorted(rows) if self.partitions.setdefault(row, partition) == partition]
        if new:
            self.commit(new, [], partition)

    @rule(data=st.data())
    @precondition(lambda self: self.served is not None and self.committed.live)
    def delete(self, data: Any) -> None:
        row = data.draw(st.sampled_from(sorted(self.committed.live)), label="row")
        partition = self.partitions.pop(row)
        self.commit([], [row], partition)

    def commit(self, upserts: list[str], deletes: list[str], partition: str) -> None:
        self.committed.commit(upserts, deletes, partition)
        self.sender.notify()

    @rule()
    def compact(self) -> None:
        self.committed.generation.compact()

    @rule(how=st.sampled_from(["stop", "kill", "wipe"]))
    def restart(self, how: str) -> None:
        """SIGTERM, SIGKILL, or SIGKILL and an empty folder."""
        getattr(self.served.process, how)()
        self.served.process.start()

    @rule()
    def deliver(self) -> None:
        """After this the books balance, and a user finds every current row and nothing else."""
        self.sender.notify()
        report = drained(self.sender)
        assert report.is_complete, report
        self.committed.assert_delivered(self.client)
        books = reconcile(self.committed.generation, self.client)
        assert books.balances, books
        assert books.missing == 0, books  # there was nothing to repair

    @invariant()
    def nobody_ever_finds_an_outdated_or_deleted_row(self) -> None:
        """Rows may be missing while the server lacks them, but what is found is current and there once."""
        if self.served is None or not self.committed.live:
            return
        near = min(self.committed.live)
        with contextlib.suppress(LongbowNotFound, LongbowUnavailable):  # not there yet, or not yet connected again
            self.committed.assert_nothing_else_found(self.client, near)


@pytest.mark.parametrize(("kind", "examples"), [("embedded", 5), ("v0.1.1", 3), ("newest", 2)])
def test_any_sequence_of_puts_updates_deletes_and_restarts_looks_like_an_upsert(kind: str, examples: int) -> None:
    machine = type(f"Upserts_{kind}", (Upserts,), {"kind": kind})
    how = settings(
        max_examples=max(1, int(examples * _SCALE)),
        stateful_step_count=12,
        deadline=None,
        derandomize=_SCALE == 1,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a shorter sequence would take minutes of restarts to find
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(machine, settings=how)  # type: ignore[no-untyped-call]

"""Random histories of a store against a plain dict; `FLETCHER_STORE_EXAMPLES` multiplies their number (1)."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_contents import check_invariants, generation_of, live_texts, open_store, write

from fletcher_core.store import Manifest

PARTITIONS = st.sampled_from(["", "2024-01-01", "Ünusual/Key"])
IDS = st.sampled_from([f"id{number}" for number in range(12)])
CHANGES = st.dictionaries(IDS, st.one_of(st.none(), st.text("ab", max_size=3)), min_size=1, max_size=6)


class StoreHistory(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.expected: dict[tuple[str, str], str] = {}
        self.open()

    def open(self) -> None:
        self.store = open_store(self.root)
        self.generation = generation_of(self.store)

    @rule(partition_key=PARTITIONS, change=CHANGES)
    def write(self, partition_key: str, change: dict[str, str | None]) -> None:
        if self.has_effect(partition_key, change):
            write(self.generation, partition_key, change)
            self.apply(partition_key, change)

    @rule(partition_key=PARTITIONS, change=CHANGES)
    def write_a_large_segment(self, partition_key: str, change: dict[str, str | None]) -> None:
        """So large that compaction of the newest files leaves it alone."""
        self.write(partition_key, {f"filler{number}": "text" for number in range(400)} | change)

    @rule(partition_key=PARTITIONS, change=CHANGES)
    def die_between_file_and_manifest(self, partition_key: str, change: dict[str, str | None]) -> None:
        """As if killed after the rename: the file is adopted when the store is opened again."""
        if not self.has_effect(partition_key, change):
            return
        real_add, real_unlink = Manifest.add_file, Path.unlink
        Manifest.add_file = _killed  # type: ignore[method-assign, assignment]
        Path.unlink = _not_reached  # type: ignore[method-assign]
        try:
            write(self.generation, partition_key, change)
        except _Killed:
            self.apply(partition_key, change)
        finally:
            Manifest.add_file, Path.unlink = real_add, real_unlink  # type: ignore[method-assign]
        self.reopen()

    @rule(partition_key=st.one_of(st.none(), PARTITIONS))
    def compact(self, partition_key: str | None) -> None:
        self.generation.compact(partition_key)

    @rule(partition_key=PARTITIONS)
    def compact_the_newest(self, partition_key: str) -> None:
        self.generation.compact_if_needed(partition_key, max_segments=2)
        assert len(self.generation.files(partition_key)) <= 2

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule()
    def lose_the_manifest(self) -> None:
        self.store.close()
        for file in self.root.glob("manifest.sqlite*"):
            file.unlink()
        self.open()

    @invariant()
    def holds_what_was_written(self) -> None:
        if hasattr(self, "store"):
            assert live_texts(self.generation) == self.expected
            check_invariants(self.store)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.root)

    def has_effect(self, partition_key: str, change: dict[str, str | None]) -> bool:
        return any(text is not None or (partition_key, row_id) in self.expected for row_id, text in change.items())

    def apply(self, partition_key: str, change: dict[str, str | None]) -> None:
        for row_id, text in change.items():
            if text is None:
                self.expected.pop((partition_key, row_id), None)
            else:
                self.expected[partition_key, row_id] = text


class _Killed(BaseException):
    pass


def _killed(*_: object) -> None:
    raise _Killed


def _not_reached(*_: object, **__: object) -> None:
    pass


EXAMPLES = int(os.environ.get("FLETCHER_STORE_EXAMPLES", "1"))
# The histories of a ledger, which go through the same rules, are others.
StoreHistory.TestCase.settings = settings(
    max_examples=5 * EXAMPLES, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreHistory = StoreHistory.TestCase

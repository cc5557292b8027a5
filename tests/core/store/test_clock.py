"""Clocks that go back: nothing in the store is ordered by them."""

import itertools
import time
from pathlib import Path

import pytest
from store_contents import CARD, METADATA, check_invariants, generation_of, live_texts, open_store, write

from fletcher_core.models.card import ModelCard

ROW: dict[str, str | None] = {"id": "a", "reason": "first", "message": "m", "content_hash": "h"}


@pytest.fixture(autouse=True)
def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock says an hour earlier than the one before."""
    seconds = itertools.count(1_800_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    monkeypatch.setattr(time, "time_ns", lambda: next(seconds) * 10**9)


def test_the_quarantine_shows_what_was_written_last(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for run, reason in enumerate(("first", "second", "third")):
            store.quarantine.write([ROW | {"reason": reason}], run_id=str(run))
        assert store.quarantine.read().select(["reason", "attempts"]).to_pylist() == [
            {"reason": "third", "attempts": 3}
        ]
        store.quarantine.retain("", "2")
        store.quarantine.write([ROW | {"reason": "fourth"}], run_id="3")
        assert store.quarantine.read()["reason"].to_pylist() == ["fourth"]


def test_the_current_generation_is_the_one_written_last(tmp_path: Path) -> None:
    cards = [ModelCard("m", name, CARD.dimension) for name in ("f0", "f1", "f2")]
    with open_store(tmp_path) as store:
        made = [store.generation(card, METADATA) for card in cards]
        current = store.current()
        assert current is not None
        assert current.name == made[2].name
        for generation in made[1:]:
            write(generation, "", {"a": generation.name})
        assert [generation.name for generation in store.generations()] == [made[i].name for i in (2, 1, 0)]
        write(made[0], "", {"a": "again"})
        assert store.generations()[0].name == made[0].name
    for path in tmp_path.glob("manifest.sqlite*"):
        path.unlink()
    with open_store(tmp_path) as store:
        assert [generation.name for generation in store.generations()] == [made[i].name for i in (0, 2, 1)]


def test_rows_supersede_each_other_in_the_order_of_their_commits(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        generation = generation_of(store)
        for text in ("one", "two", "three"):
            write(generation, "", {"a": text})
        check_invariants(store)
        generation.compact("")
        write(generation, "", {"a": "four"})
        check_invariants(store)
        assert list(live_texts(generation).values()) == ["four"]

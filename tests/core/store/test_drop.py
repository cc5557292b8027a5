"""Dropping a partition that is no more: its rows are found no longer, Longbow is told, the others stay."""

import json
import re

import pytest
from store_contents import METADATA, check_invariants, generation_of, live_texts, write

from fletcher_core.cli import main
from fletcher_core.models.card import ModelCard
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store import generation as generation_module


def test_a_dropped_partition_has_deletes_in_place_of_its_rows(
    store: VectorStore, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "_DELETES", 2)
    write(generation, "a", {"u": "one", "v": "two", "w": "three"})
    write(generation, "a", {"u": "another one", "w": None, "x": "four"})
    write(generation, "b", {"u": "five"})
    assert generation.empty("a") == 3
    assert live_texts(generation) == {("b", "u"): "five"}
    check_invariants(store)
    assert [segment.deletes for segment in generation.segments("a")] == [0, 1, 2, 1]  # what Longbow gets to know
    assert generation.empty("a") == 0
    generation.compact("a")
    check_invariants(store)
    write(generation, "a", {"u": "back again"})
    assert live_texts(generation) == {("a", "u"): "back again", ("b", "u"): "five"}


def test_the_command_drops_every_models_rows_and_what_was_set_aside(
    store: VectorStore, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = store.generation(ModelCard("org/Earlier", "beef", 4), METADATA)
    generation = generation_of(store)
    write(generation, "left/tenant", {"u": "one"})
    write(generation, "", {"u": "two"})
    row = {"id": "7", "reason": "too_long", "message": "a long one", "content_hash": None}
    store.quarantine.write([row], run_id="r", partition_key="left/tenant")
    where = ["--store", str(store.root), "--collection", "docs"]
    assert main(["drop", *where, "--partition", "left/tenant", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"generation": generation.name, "partition": "left/tenant", "rows": 1}
    assert live_texts(generation) == {("", "u"): "two"}
    assert not earlier.partitions()
    assert store.quarantine.read().num_rows == 0
    assert main(["drop", *where, "--partition", "none"]) == 1
    assert re.search(r"no such partition; known are '', left/tenant", capsys.readouterr().err)
    with generation.locked("", "run-1"):
        assert main(["drop", *where, "--partition", ""]) == 1
    assert "run-1" in capsys.readouterr().err
    assert live_texts(generation) == {("", "u"): "two"}

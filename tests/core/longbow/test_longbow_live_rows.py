"""Which rows are live, kept up with what is committed; and no delete call for rows that a server never got."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.live_rows import LiveRows
from fletcher_core.longbow.retirement import live_sequences
from fletcher_core.longbow.sender import DeliveryReport, Sender, SenderSettings
from fletcher_core.sql import literals

BLOCK = 4


def delivered(collection: Any, client: LongbowClient) -> DeliveryReport:
    with Sender(collection.generation, client, SenderSettings(patience=0.5)) as sender:
        report = sender.drain(20)
    assert report.is_complete
    return report


def test_live_rows_are_those_of_the_store_after_every_commit_and_merge(collection: Any) -> None:
    rows, random = LiveRows(collection.generation), np.random.default_rng(5)
    for step in range(20):
        for _ in range(int(random.integers(1, 3))):
            names = [f"row {number} of partition {step % 2}" for number in range(6)]
            chosen = random.permutation(names)[: random.integers(1, 5)].tolist()
            deleted = [name for name in chosen[:1] if name in collection.live]
            collection.write([name for name in chosen if name not in deleted], deletes=deleted, partition=str(step % 2))
        if step % 5 == 4:
            collection.generation.compact()
        live = live_sequences(collection.generation)
        everything = np.arange(int(live.max()) + 1)
        assert rows.near(everything, BLOCK).tolist() == live.tolist()
        one = live[len(live) // 2]
        near = rows.near(np.array([one]), BLOCK)
        assert near.tolist() == live[live // BLOCK == one // BLOCK].tolist()


def test_a_segment_is_read_once_and_all_again_after_a_merge(collection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[Path]] = []

    def listed(values: list[Any]) -> str:
        if isinstance(values[0], Path):
            read.append(values)
        return literals(values)

    monkeypatch.setattr("fletcher_core.longbow.live_rows.literals", listed)
    rows = LiveRows(collection.generation)
    first, second = collection.write(["a", "b"]).file, collection.write(["c"]).file
    assert len(rows.near(np.arange(8), BLOCK)) == 3
    third = collection.write(["d"]).file
    assert len(rows.near(np.arange(8), BLOCK)) == 4
    rows.near(np.arange(8), BLOCK)
    assert read == [[first, second], [third]]
    collection.generation.compact()
    assert len(rows.near(np.arange(8), BLOCK)) == 4
    assert read[2:] == [collection.generation.files()]


def test_a_server_that_came_back_empty_is_not_asked_to_delete_what_it_never_got(
    server: Any, collection: Any, client: LongbowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    delete = LongbowClient.delete

    def counted(self: LongbowClient, dataset: str, row: int) -> None:
        calls.append(row)
        delete(self, dataset, row)

    monkeypatch.setattr(LongbowClient, "delete", counted)
    collection.write(["a", "b", "c"])
    replaced = collection.live["a"]
    delivered(collection, client)
    collection.generation.compact()
    collection.write(["a"])
    collection.generation.compact()
    assert delivered(collection, client).rows_retired == 1  # the server got it before it was merged away
    assert calls == [replaced]
    server.start(tmp_path / "another folder")
    assert delivered(collection, client).rows_retired == 0
    assert calls == [replaced]
    assert sorted(client.scan(collection.generation.name)["id"].to_pylist()) == sorted(collection.live.values())

"""Search through Fletcher: current rows only, each once, whatever the server holds besides them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from fletcher_core.errors import ConfigError, LongbowNotFound, StoreError
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.sender import DeliveryReport, Sender, SenderSettings
from fletcher_core.longbow.server import Faults, LongbowServer
from fletcher_core.models.card import ModelCard
from fletcher_core.search import Hit, search
from fletcher_core.store.store import VectorStore

CARD = ModelCard("angles", "cd" * 16, 2)
QUICK = SenderSettings(patience=0.2)


class Angles:
    """Embeds a number, written as text, as the point at that angle on the unit circle."""

    def __init__(self, card: ModelCard = CARD) -> None:
        self.card = card

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        point = np.zeros(self.card.dimension, dtype=np.float32)
        point[:2] = np.cos(float(text)), np.sin(float(text))
        return point


class Circle:
    """A store of rows on the unit circle, and the server that they are delivered to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = VectorStore.open(folder / "store", collection="circle")
        self.generation = self.store.generation(CARD, pa.schema([("note", pa.string())]))
        self.server = LongbowServer(folder / "server")
        self.client = LongbowClient(LongbowSettings(self.server.address.data, self.server.address.meta))
        self.sequences: dict[str, int] = {}

    def write(self, angles: dict[str, float | None], partition: str = "") -> None:
        """Upsert each id at its angle; None deletes it."""
        ids = list(angles)
        points = [None if a is None else Angles().embed_query(str(a)) for a in angles.values()]
        rows = pa.table(
            {
                "id": ids,
                "op": ["delete" if point is None else "upsert" for point in points],
                "content_hash": [""] * len(ids),
                "metadata_hash": [""] * len(ids),
                "tokens": pa.array([1] * len(ids), pa.int32()),
                "truncated": [False] * len(ids),
                "replaces": pa.array([self.sequences.get(row) for row in ids], pa.int64()),
                "note": [f"{row} at {angles[row]}" for row in ids],
                "vector": pa.array(points, pa.list_(pa.float32(), 2)),
            }
        )
        segment = self.generation.write_segment(partition, rows, run_id="test")
        self.sequences |= {row: segment.first_sequence + place for place, row in enumerate(ids)}

    def deliver(self) -> DeliveryReport:
        with Sender(self.generation, self.client, QUICK) as sender:
            return sender.drain(20)

    def restart(self, faults: Faults | None = None) -> None:
        ports = [int(address.rpartition(":")[2]) for address in (self.server.address.data, self.server.address.meta)]
        self.server.close()
        self.server = LongbowServer(self.folder / "server", data_port=ports[0], meta_port=ports[1], faults=faults)
        self.client.close()
        self.client = LongbowClient(self.client.settings)
        self.client.breaker.reset()

    def search(self, angle: float, k: int = 10) -> list[Hit]:
        return search(self.store, self.client, Angles(), str(angle), k)

    def found(self, angle: float, k: int = 10) -> list[str]:
        return [hit.id for hit in self.search(angle, k)]


@pytest.fixture
def circle(tmp_path: Path) -> Iterator[Circle]:
    made = Circle(tmp_path)
    yield made
    made.client.close()
    made.server.close()


def test_hits_come_best_first_with_their_metadata_and_cosine(circle: Circle) -> None:
    circle.write({"east": 0.0, "north": np.pi / 2, "west": np.pi})
    circle.deliver()
    hits = circle.search(0.1)
    assert [hit.id for hit in hits] == ["east", "north", "west"]
    assert hits[0].metadata == {"note": "east at 0.0"}
    assert hits[0].partition_key == ""
    for hit, angle in zip(hits, (0.0, np.pi / 2, np.pi), strict=True):
        assert hit.cosine == pytest.approx(np.cos(angle - 0.1), abs=1e-5)
        assert hit.score == pytest.approx(1 / (1 + np.sqrt(2 - 2 * np.cos(angle - 0.1))), abs=1e-5)
    assert circle.found(3.0, k=1) == ["west"]


def test_a_generation_can_be_searched_as_well_as_a_store(circle: Circle) -> None:
    circle.write({"east": 0.0})
    circle.deliver()
    assert search(circle.generation, circle.client, Angles(), "0")[0].id == "east"


def test_changed_rows_are_found_where_they_are_now_and_deleted_rows_nowhere(circle: Circle) -> None:
    circle.write({"moved": 0.0, "gone": 0.0, "stays": 0.5})
    circle.write({"moved": 3.0, "gone": None})
    circle.deliver()
    assert circle.found(0.0) == ["stays", "moved"]
    assert circle.search(3.0)[0].metadata == {"note": "moved at 3.0"}


def test_enough_hits_come_although_most_of_the_nearest_are_stale(circle: Circle) -> None:
    for turn in range(30):
        circle.write({f"row {n}": 0.001 * (n + turn) for n in range(5)})
    circle.write({f"far {n}": 2.0 + n / 100 for n in range(5)})
    circle.write({f"row {n}": None for n in range(3)})
    circle.deliver()
    assert circle.client.readiness(circle.generation.name).index_len == 155
    found = circle.found(0.0, k=7)
    assert found == ["row 3", "row 4", "far 0", "far 1", "far 2", "far 3", "far 4"]
    assert len(circle.found(0.0, k=500)) == 7


def test_one_id_in_two_partitions_is_found_once_as_its_newer_version(circle: Circle) -> None:
    circle.write({"row": 0.0}, partition="monday")
    circle.sequences.clear()
    circle.write({"row": 0.2}, partition="tuesday")
    circle.deliver()
    (hit,) = circle.search(0.0)
    assert (hit.partition_key, hit.metadata) == ("tuesday", {"note": "row at 0.2"})


def test_redelivery_never_shows_a_row_twice(circle: Circle) -> None:
    rows = {f"row {n}": n / 10 for n in range(20)}
    circle.write(rows)
    circle.server.faults = Faults(drop_after_ok=True)  # said OK, dropped, and back after the next start
    circle.deliver()
    circle.restart()
    circle.deliver()
    circle.server.faults = Faults(unavailable_mid_stream=7)
    circle.write({"row 0": 0.05, "row 1": None})
    circle.deliver()
    circle.restart(Faults(lose_last_puts=1, resurrect_deletes=True))
    assert circle.deliver().is_complete
    sent_twice = circle.client.scan(circle.generation.name)["key"].to_pylist()
    assert len(sent_twice) > len(set(sent_twice))
    found = circle.found(0.0, k=50)
    assert sorted(found) == sorted(rows.keys() - {"row 1"})
    assert circle.search(0.0)[0].metadata == {"note": "row 0 at 0.05"}


def test_a_store_that_holds_nothing_says_so(circle: Circle, tmp_path: Path) -> None:
    with (
        VectorStore.open(tmp_path / "another", collection="circle") as empty,
        pytest.raises(StoreError, match="materialize the asset first"),
    ):
        search(empty, circle.client, Angles(), "0")


def test_a_dataset_that_was_not_delivered_is_named(circle: Circle) -> None:
    circle.write({"east": 0.0})
    with pytest.raises(LongbowNotFound, match=rf"{circle.generation.name} not found.*never delivered"):
        circle.search(0.0)


def test_a_query_of_another_model_or_dimension_is_refused(circle: Circle) -> None:
    with pytest.raises(ConfigError, match=r"shape \(3,\).*dimension 2"):
        search(circle.generation, circle.client, Angles(ModelCard("angles", CARD.fingerprint, 3)), "0")
    with pytest.raises(ConfigError, match="embedded with other"):
        search(circle.generation, circle.client, Angles(ModelCard("other", "ef" * 16, 2)), "0")
    with pytest.raises(ConfigError, match="k is 0"):
        circle.search(0.0, k=0)

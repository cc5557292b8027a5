"""A store on a real S3 server, from several machines: what one commits the others have, and none undoes."""

import json
import logging
import traceback
from fnmatch import fnmatch
from pathlib import Path

import pytest
from s3_proxy import OpenOn, Proxy, s3_client
from store_contents import check_invariants, generation_of, live_texts, upserts, write

from fletcher_core.errors import ConfigError, StoreError, StoreLockedError
from fletcher_core.store import Generation, VectorStore, live_table
from fletcher_core.store.cloud.log import CHECKPOINT_EVERY
from fletcher_core.store.cloud.upload import put_segment
from fletcher_core.store.health import vector_health
from fletcher_core.store.planned import write_planned
from fletcher_core.store.statistics import record_statistics
from fletcher_core.store.status import collection_status, find_collections

ROW = {"id": "q", "reason": "too_long", "message": "m", "content_hash": "h"}


def objects(proxy: Proxy, address: str) -> dict[str, int]:
    """Sizes of all objects by their names below the store's address."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    client = s3_client(proxy)
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
    return {each["Key"].removeprefix(f"{prefix}/"): each["Size"] for each in found}


def segment_objects(proxy: Proxy, address: str) -> list[str]:
    return [name for name in objects(proxy, address) if "/segments/" in name]


def test_what_one_machine_commits_another_reads(on: OpenOn) -> None:
    here = generation_of(on("here"))
    write(here, "p", {"a": "one", "b": "two"})
    write(here, "p", {"a": "three", "b": None})
    there = on("there")
    assert live_texts(generation_of(there)) == {("p", "a"): "three"}
    check_invariants(there)
    write(generation_of(there), "p", {"c": "four"})
    assert live_texts(generation_of(on("a third"))) == {("p", "a"): "three", ("p", "c"): "four"}


def test_only_the_files_of_what_is_read_are_fetched(on: OpenOn) -> None:
    here = generation_of(on("here"))
    for key in ("p", "q", "r"):
        write(here, key, {"a": key})
    there = on("there")
    generation = generation_of(there)
    live_table(generation, ["q"])
    assert [path.parent.name for path in there.root.glob("*/segments/*/*.parquet")] == ["q"]


def test_a_segment_is_an_object_and_the_log_says_that_it_counts(on: OpenOn, proxy: Proxy, address: str) -> None:
    generation = generation_of(on("here"))
    with generation.locked("p", "the run"):
        proxy.forget()
        segment = write(generation, "p", {"a": "one"}, "the run")
        puts = [path.split("/", 4)[4].split("?")[0] for method, path in proxy.requests if method == "PUT"]
        name = segment.file.relative_to(generation.root).as_posix()
        assert [path.split("/")[0] for path in puts if "sessions" not in path] == ["log", generation.name, "log"]
    assert objects(proxy, address)[name] == segment.file.stat().st_size
    entries = [name for name in objects(proxy, address) if name.startswith("log/")]
    (folder,) = {name.rsplit("/", 1)[0] for name in entries}
    assert entries == [f"{folder}/{number:010d}.json" for number in range(1, len(entries) + 1)]


def test_a_fresh_working_copy_begins_at_a_checkpoint(on: OpenOn, proxy: Proxy, address: str) -> None:
    here = on("here")
    generation = generation_of(here)
    label = write(generation, "p", {"a": "one"}).label
    for number in range(CHECKPOINT_EVERY):
        here.manifest.record_delivery("t", label, "sent", rows=number)
    names = objects(proxy, address)
    assert any(fnmatch(name, "checkpoints/*/0000000100.json.gz") for name in names)
    proxy.forget()
    there = on("there")
    assert there.manifest.deliveries("t", generation.name) == here.manifest.deliveries("t", generation.name)
    assert there.manifest.next_sequence() == here.manifest.next_sequence()
    assert live_texts(generation_of(there)) == {("p", "a"): "one"}
    assert len(proxy.requests) < 25, proxy.counts()


def test_a_partition_in_use_on_another_machine_is_refused_with_its_runs_name(on: OpenOn) -> None:
    here, there = generation_of(on("here")), generation_of(on("there"))
    with here.locked("p", "the first run"):
        with pytest.raises(StoreLockedError, match=r"partition 'p' .*'the first run' \(process \d+ on .+\)"):
            write(there, "p", {"a": "one"}, "the second run")
        write(there, "q", {"a": "one"}, "the second run")
        assert collection_status(there.place.address, "docs").generations[0].locked_by[0].startswith("run 'the first")
    write(there, "p", {"a": "two"}, "the second run")
    here.place.refresh(now=True)  # else reads may be a few seconds late
    assert live_texts(here) == {("q", "a"): "one", ("p", "a"): "two"}


def test_a_lease_that_is_not_renewed_is_lost_and_its_holder_writes_no_more(
    on: OpenOn, proxy: Proxy, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie, heir = generation_of(on("here")), generation_of(on("there"))
    with zombie.locked("p", "the zombie"):
        write(zombie, "p", {"a": "one"}, "the zombie")
        monkeypatch.setattr(type(zombie.place._bucket), "put", _no_heartbeat(zombie))  # type: ignore[attr-defined]
        with heir.locked("p", "the heir"):
            assert live_texts(heir) == {("p", "a"): "one"}
            write(heir, "p", {"a": "two"}, "the heir")
            with pytest.raises(StoreLockedError, match=r"run 'the heir'.*took .* over"):
                write(zombie, "p", {"a": "stale", "b": "stale"}, "the zombie")
    assert live_texts(heir) == live_texts(zombie) == {("p", "a"): "two"}
    left = segment_objects(proxy, address)
    assert len(left) == 2  # the zombie's last file is gone
    with heir.locked("p", "the next"):
        pass
    assert live_texts(zombie) == {("p", "a"): "two"}


def _no_heartbeat(of: Generation) -> object:
    """`Bucket.put` that renews no lease of this generation's store."""
    bucket = of.place._bucket  # type: ignore[attr-defined]
    put = type(bucket).put

    def quiet(self: object, name: str, data: bytes | Path) -> None:
        if self is not bucket or not name.startswith("sessions/"):
            put(self, name, data)

    return quiet


def test_what_a_run_left_that_did_not_end_in_order_is_swept_by_the_next(on: OpenOn, proxy: Proxy, address: str) -> None:
    here, there = generation_of(on("here")), generation_of(on("there"))

    def fail() -> None:
        with here.locked("p", "a run"):
            put_segment(address, here.name, "p", "seg-0000000001-abandoned", b"half of a run")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert len(segment_objects(proxy, address)) == 1
    write(there, "p", {"a": "one"})
    (name,) = segment_objects(proxy, address)
    assert "abandoned" not in name


def test_a_sweep_that_is_overtaken_deletes_nothing_of_the_run_that_took_over(
    on: OpenOn, proxy: Proxy, address: str
) -> None:
    first, paused, heir = (generation_of(on(machine)) for machine in ("first", "paused", "heir"))
    with pytest.raises(RuntimeError), first.locked("p", "the first run"):
        raise RuntimeError
    bucket = paused.place._bucket  # type: ignore[attr-defined]

    def overtaken(folder: str, after: str = "") -> list[str]:
        if folder.endswith("/segments/p"):
            paused.place._session._ended.set()  # type: ignore[attr-defined]  # as if its machine stood still
            write(heir, "p", {"a": "one"}, "the heir")
        names: list[str] = list_names(folder, after)
        return names

    list_names, bucket.names = bucket.names, overtaken
    with pytest.raises(StoreLockedError, match=r"took .* over"):
        write(paused, "p", {"a": "stale"}, "the paused run")
    assert len(segment_objects(proxy, address)) == 1
    assert live_texts(generation_of(on("a third"))) == {("p", "a"): "one"}


def test_what_a_replaced_run_had_merged_or_adopted_is_taken_back(
    on: OpenOn, proxy: Proxy, address: str, tmp_path: Path
) -> None:
    replaced, heir = generation_of(on("here")), generation_of(on("there"))
    for text in ("one", "two"):
        write(replaced, "p", {"a": text})
    with replaced.locked("p", "the replaced run"):
        written = write_planned(
            replaced.plan_segment("p", 1, "the replaced run", tmp_path), upserts({"a": "three"}), 1.0
        )
        replaced.place._session._ended.set()  # type: ignore[attr-defined]  # as if its machine stood still
        replaced.place._session._wake.set()  # type: ignore[attr-defined]
        with heir.locked("p", "the heir"):
            pass
        left = segment_objects(proxy, address)
        put_segment(address, replaced.name, "p", written.plan.label, b"put late")
        for change in (lambda: replaced.compact("p"), lambda: replaced.adopt(written)):
            with pytest.raises(StoreLockedError, match=r"took .* over"):
                change()
    assert segment_objects(proxy, address) == left
    assert live_texts(heir) == {("p", "a"): "two"}


def test_a_file_that_is_being_fetched_stays_when_another_process_opens_the_working_copy(on: OpenOn) -> None:
    write(generation_of(on("here")), "p", {"a": "one"})
    reader = generation_of(on("there"))
    bucket = reader.place._bucket  # type: ignore[attr-defined]
    download = bucket._objects.download

    def overtaken(name: str, target: object) -> None:
        download(name, target)
        with on("there") as other, generation_of(other).locked("p", "another process"):
            pass

    bucket._objects.download = overtaken
    assert live_texts(reader) == {("p", "a"): "one"}


def test_a_reader_whose_file_was_merged_on_another_machine_reads_the_merged_one(on: OpenOn) -> None:
    here = generation_of(on("here"))
    write(here, "p", {"a": "one", "b": "two"})
    write(here, "p", {"a": "three"})
    there = generation_of(on("there"))
    merged = here.compact("p")
    assert (merged.files_before, merged.files_after) == (2, 1)
    (segment,) = [segment for segment in there.segments() if segment.upserts == 1]
    assert there.read_segment(segment.label)["id"].to_pylist() == ["a"]
    assert live_texts(there) == {("p", "a"): "three", ("p", "b"): "two"}
    assert live_table(there).num_rows == 2


def test_objects_of_merged_and_dropped_files_are_deleted(on: OpenOn, proxy: Proxy, address: str) -> None:
    store = on("here")
    here = generation_of(store)
    for text in ("one", "two", "three"):
        write(here, "p", {"a": text})
    write(here, "q", {"a": "four"})
    here.compact()
    assert len(segment_objects(proxy, address)) == 2
    store.retire(here.name, "q")
    assert segment_objects(proxy, address) == [here.files()[0].relative_to(store.root).as_posix()]
    assert store.manifest.garbage() == []


def test_what_is_set_aside_and_measured_is_known_on_other_machines(on: OpenOn) -> None:
    here = on("here")
    generation = generation_of(here)
    write(generation, "p", {"a": "one"})
    for run in ("1", "2"):
        here.quarantine.write([ROW], run_id=run, partition_key="p", fingerprint="f")
    health = vector_health(generation, "p")
    assert record_statistics(generation, health, "1") is None
    there = on("there")
    assert there.quarantine.read("p")["attempts"].to_pylist() == [2]
    drift = record_statistics(generation_of(there), health, "2")
    assert drift is not None
    assert (drift.since, drift.rows) == ("1", 1)
    there.quarantine.retain("p", "3")
    assert on("a third").quarantine.read().num_rows == 0


def test_deliveries_are_everyones_and_a_sender_that_was_replaced_records_none(on: OpenOn) -> None:
    here, there = on("here"), on("there")
    generation = generation_of(here)
    label = write(generation, "p", {"a": "one"}).label
    lock = generation.place.lock("longbow-t_1", "the delivery")
    lock.acquire("sender")
    here.manifest.record_delivery("t:1", label, "sent", rows=1)
    there.place.refresh(now=True)
    assert there.manifest.delivery("t:1", label).state == "sent"
    here.place._session._ended.set()  # type: ignore[attr-defined]  # as if its machine were gone
    other = there.place.lock("longbow-t_1", "the delivery")
    other.acquire("sender")
    there.manifest.record_delivery("t:1", label, "applied", rows=1)
    with pytest.raises(StoreLockedError, match="took longbow-t_1 over"):
        here.manifest.reset_deliveries("t:1", generation.name)
    assert here.manifest.delivery("t:1", label).state == "applied"


def test_a_segment_that_another_process_wrote_counts_once_it_is_adopted(
    on: OpenOn, address: str, tmp_path: Path
) -> None:
    store = on("the driver")
    generation = generation_of(store)
    with generation.locked("p", "the run"):
        plan = generation.plan_segment("p", 3, "the run", tmp_path)
        assert plan.where == address
        written = write_planned(plan, upserts({"a": "one", "b": "two"}), 1.0)
        assert live_texts(generation) == {}
        segment = generation.adopt(written)
        assert not segment.file.exists()
        assert (segment.rows, segment.first_sequence, segment.bytes) == (2, plan.first_sequence, written.bytes)
    assert live_texts(generation) == {("p", "a"): "one", ("p", "b"): "two"}
    another = on("another")
    assert live_texts(generation_of(another)) == {("p", "a"): "one", ("p", "b"): "two"}
    check_invariants(another)


def test_a_working_copy_can_be_deleted_and_one_of_a_store_begun_anew_is_not_believed(
    on: OpenOn, proxy: Proxy, address: str
) -> None:
    with on("here") as store:
        write(generation_of(store), "p", {"a": "one"})
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    client = s3_client(proxy)
    for name in objects(proxy, address):
        client.delete_object(Bucket=bucket, Key=f"{prefix}/{name}")
    again = on("here")
    assert again.generations() == []
    write(generation_of(again), "p", {"b": "two"})
    assert live_texts(generation_of(on("there"))) == {("p", "b"): "two"}


def test_stores_below_an_address_are_found(on: OpenOn, address: str) -> None:
    generation_of(on("here"))
    assert VectorStore.exists(address)
    assert find_collections(address.removesuffix("/folder")) == find_collections(address) == [(address, "docs")]
    assert not VectorStore.exists(f"{address}/elsewhere")


def test_a_newer_fletchers_store_is_left_alone(on: OpenOn, proxy: Proxy, address: str) -> None:
    on("here")
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    client = s3_client(proxy)
    body = json.dumps({"version": 99, "id": "x"}).encode()
    client.put_object(Bucket=bucket, Key=f"{prefix}/fletcher.json", Body=body)
    with pytest.raises(StoreError, match=r"newer Fletcher: it is of version 99"):
        on("there")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/folder", "begins with s3://"),
        ("s3:///folder", "BUCKET/FOLDER"),
        ("s3://key:secret@bucket/folder", "taken from the environment"),
        ("s3://bucket/folder?sig=secret", "taken from the environment"),
        ("s3://bucket/../folder", "name the folder itself"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_without_showing_secrets(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        VectorStore.open(address, collection="docs")
    assert "secret" not in str(caught.value)


def test_what_the_environment_lacks_or_has_wrong_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StoreError, match="no such bucket") as caught:
        VectorStore.open("s3://no-such-bucket/folder", collection="docs")
    assert "the-secret" not in f"{caught.value}{caplog.text}"
    monkeypatch.setenv("FLETCHER_LEASE_SECONDS", "soon")
    with pytest.raises(ConfigError, match="FLETCHER_LEASE_SECONDS is 'soon'"):
        VectorStore.open(address, collection="docs")
    monkeypatch.delenv("FLETCHER_LEASE_SECONDS")
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(ConfigError, match="extra `cloud`"):
        VectorStore.open(address, collection="docs")


def test_no_traceback_shows_what_the_server_repeats_of_a_request(on: OpenOn, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    bucket = on("here").place._bucket  # type: ignore[attr-defined]

    def refuse(*arguments: object) -> None:
        raise obstore.exceptions.PermissionDeniedError(
            "status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><Message>Look at your key</Message>"
            "<CanonicalRequest>GET\nx-amz-security-token:the-token</CanonicalRequest></Error>"
        )

    monkeypatch.setattr(obstore, "get", refuse)
    with pytest.raises(StoreError, match=r"refuses to get 'x': .*SignatureDoesNotMatch; Look at your key") as caught:
        bucket.get("x")
    assert "the-token" not in "".join(traceback.format_exception(caught.value))


def test_a_process_that_was_forked_is_told_to_open_its_own_store(on: OpenOn, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = generation_of(on("here"))
    monkeypatch.setattr(generation.place._bucket._objects, "_process", -1)  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="before this process was forked"):
        write(generation, "p", {"a": "one"})

"""A token of Longbow's lands nowhere: not in events, metadata, logs, error messages or what Dagster stores of a run."""

import logging
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from embedding_project import DOCS, Project

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.embedded import stop_embedded
from fletcher_core.longbow.secret import Secret
from fletcher_core.longbow.server import LongbowServer
from fletcher_dagster import FletcherResource, LongbowResource

TOKEN = "s3cret-91ab-do-not-show"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[LongbowServer]:
    with LongbowServer(tmp_path / "rows", token=Secret(TOKEN)) as server:
        yield server


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """One that writes everything to a folder, as a user's does."""
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield instance


def project_of(tmp_path: Path, instance: dg.DagsterInstance, longbow: LongbowResource | None) -> Project:
    fletcher = FletcherResource(store_path=str(tmp_path / "vectors"), longbow=longbow)
    project = Project(tmp_path, instance, fletcher)
    if not project.database.exists():
        project.sql(DOCS)
    return project


def everything_written(folder: Path) -> bytes:
    """All bytes of all files below the folder: events, runs, metadata, compute logs, vectors, manifests."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files
    return b"\n".join(path.read_bytes() for path in files)


def test_a_tokens_text_is_in_nothing_that_a_run_leaves_behind(
    tmp_path: Path,
    instance: dg.DagsterInstance,
    guarded: LongbowServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OUR_TOKEN", TOKEN)
    monkeypatch.setenv("OUR_AUTHORITY", "nowhere.pem")
    (tmp_path / "wrong").write_text(f"{TOKEN}-wrong")
    places: list[dict[str, object]] = [
        {"token": dg.EnvVar("OUR_TOKEN")},
        {"token_env": "OUR_TOKEN"},
        {"token_file": str(tmp_path / "wrong")},
        {"token": dg.EnvVar("OUR_TOKEN"), "tls_ca": dg.EnvVar("OUR_AUTHORITY")},
    ]
    shown: list[str] = []
    caplog.set_level(logging.DEBUG)
    for number, place in enumerate(places):
        longbow = LongbowResource(
            data_address=guarded.address.data, meta_address=guarded.address.meta, delivery_timeout=5, **place
        )
        project = project_of(tmp_path, instance, longbow)
        project.sql(f"INSERT INTO docs VALUES ({100 + number}, 'one more text', '2026-01-01', 'en')")
        result = project.run(project.assets(project.docs(text_columns="text")))
        figures = project.materializations()[0].metadata if project.materializations() else {}
        assert result.success == (number < 3)
        if number < 2:
            assert figures["fletcher/rows_pending"].value == 0
        if number == 2:
            assert "does not take the token given by token_file" in str(figures["fletcher/longbow_problem"].value)
        shown += [repr(longbow), str(longbow), repr(project.fletcher), str(project.fletcher.known_settings())]
        for record in instance.all_logs(result.run_id):
            shown.append(dg.serialize_value(record))
    shown += [caplog.text, *capfd.readouterr()]
    assert any("fletcher/rows_sent" in text for text in shown)
    assert all(TOKEN not in text for text in shown)
    (tmp_path / "wrong").unlink()
    assert TOKEN.encode() not in everything_written(tmp_path)
    assert b"docs_embeddings" in everything_written(tmp_path / "dagster")


def test_the_embedded_server_of_a_resource_is_closed_to_others(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    project = project_of(tmp_path, instance, None)
    folder = tmp_path / "vectors" / ".longbow"
    try:
        assert project.run(project.assets(project.docs(text_columns="text"))).success
        assert project.materializations()[0].metadata["fletcher/rows_pending"].value == 0
        token = (folder / "token").read_text()
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "token").rename(tmp_path.parent / f"{tmp_path.name}-token")
        assert token.encode() not in everything_written(tmp_path)
    finally:
        stop_embedded(folder)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"token": TOKEN}, "token"),
        ({"token_file": "f", "token_header": "x-api-key"}, "token_file, token_header"),
        ({"tls_ca": "ca.pem"}, "tls_ca"),
        ({"allow_plaintext_token": True}, "allow_plaintext_token"),
    ],
)
def test_tls_and_token_settings_without_an_address_are_refused(
    tmp_path: Path, settings: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"Longbow {named}: set, but data_address is empty") as caught:
        LongbowResource(**settings).client(tmp_path / "embedded")
    assert TOKEN not in str(caught.value)
    assert not (tmp_path / "embedded").exists()

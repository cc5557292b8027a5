"""Tokens: sent with every call, compared in constant time, rotated without a restart, and shown to nobody."""

import copy
import dataclasses
import logging
import os
import pickle
import pprint
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fletcher_core.errors import ConfigError, FletcherError, LongbowRejected
from fletcher_core.longbow import Credentials, LongbowClient, LongbowSettings, Secret
from fletcher_core.longbow.breaker import Proof
from fletcher_core.longbow.credentials import MAX_TOKEN_BYTES, check_token, read_token_file
from fletcher_core.longbow.secret import same_secret
from fletcher_core.longbow.server import LongbowServer
from fletcher_core.longbow.server.access import offered_tokens

TOKEN = "s3cret-7f1c-do-not-show"
ROWS = pa.table({"id": np.array([1, 2], np.uint64), "vector": pa.array([[1.0, 0], [0, 1]], pa.list_(pa.float32(), 2))})
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[LongbowServer]:
    with LongbowServer(tmp_path / "rows", token=Secret(TOKEN)) as server:
        yield server


def connect(server: LongbowServer, **credentials: Any) -> LongbowClient:
    return LongbowClient(
        LongbowSettings(server.address.data, server.address.meta, credentials=Credentials(**credentials))
    )


def calls(client: LongbowClient) -> list[Callable[[], object]]:
    return [
        client.readiness,
        lambda: client.put("docs", ROWS),
        lambda: client.scan("docs"),
        lambda: client.search("docs", [[1, 0]], 1),
        lambda: client.delete("docs", 1),
        client.list_datasets,
        lambda: client.delete_dataset("docs"),
    ]


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_with_the_token_every_call_goes_through(guarded: LongbowServer, header: str) -> None:
    with connect(guarded, token=TOKEN, token_header=header) as client:
        for call in calls(client):
            call()


@pytest.mark.parametrize(
    ("credentials", "says"),
    [
        ({}, "asks for a token"),
        ({"token": TOKEN + "x"}, "does not take the token given by token, sent as 'authorization'"),
        ({"token": TOKEN[:-1]}, "does not take the token"),
        ({"token": TOKEN.upper()}, "does not take the token"),
        ({"token": TOKEN, "token_header": "x-other-key"}, "sent as 'x-other-key'"),
    ],
)
def test_without_it_no_call_of_either_port_does(guarded: LongbowServer, credentials: dict[str, str], says: str) -> None:
    with connect(guarded, **credentials) as client:
        for call in calls(client):
            with pytest.raises(LongbowRejected, match=says) as caught:
                call()
            assert TOKEN not in str(caught.value)
    with connect(guarded, token=TOKEN) as client:
        assert client.list_datasets() == []  # the refused put made no dataset


def test_calls_that_only_other_clients_make_need_the_token_too(guarded: LongbowServer) -> None:
    for address in (guarded.address.data, guarded.address.meta):
        client = flight.FlightClient(f"grpc://{address}")
        descriptor = flight.FlightDescriptor.for_path("docs")
        for call in (
            lambda c=client: list(c.do_action(("CreateNamespace", b'{"name": "x"}'))),
            lambda c=client: list(c.do_action(("fault", b'{"slow_down": true}'))),
            lambda c=client, d=descriptor: c.get_flight_info(d),
            lambda c=client, d=descriptor: c.get_schema(d),
            lambda c=client: list(c.list_actions()),
            lambda c=client, d=descriptor: c.do_exchange(d)[1].read_chunk(),
        ):
            with pytest.raises((flight.FlightUnauthenticatedError, OSError), match="no valid token"):
                call()
    assert not guarded.faults.slow_down


def test_a_token_file_that_is_replaced_is_in_force_at_once_on_both_sides(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "client-token", tmp_path / "server-token"
    ours.write_text(f"{TOKEN}\n")
    theirs.write_text(f"{TOKEN}\n")
    with (
        LongbowServer(tmp_path / "rows", token_file=theirs) as server,
        connect(server, token_file=str(ours)) as client,
    ):
        client.readiness()
        _replace(theirs, "another")
        with pytest.raises(LongbowRejected, match="token_file"):
            client.readiness()
        _replace(ours, "another")
        client.readiness()
        theirs.unlink()
        with pytest.raises(LongbowRejected, match="cannot read its token file"):
            client.readiness()
        ours.unlink()
        with pytest.raises(ConfigError, match=r"token_file: .*client-token' cannot be read"):
            client.readiness()


def test_a_token_file_that_cannot_be_read_closes_no_circuit(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with LongbowServer(tmp_path / "rows", token_file=token) as server, connect(server, token_file=str(token)) as client:
        client.breaker.trip(Proof.KEEPS_ROWS, "rows are gone")
        while client.breaker.state == "open":
            time.sleep(0.01)
        token.unlink()
        for call in calls(client):
            with pytest.raises(ConfigError, match="cannot be read"):
                call()
        assert client.breaker.state == "half-open"
        token.write_text(TOKEN)
        client.put("docs", ROWS)
        assert client.breaker.state == "closed"


def _replace(path: Path, token: str) -> None:
    """As Kubernetes does it: another file under the same name."""
    fresh = path.with_suffix(".new")
    fresh.write_text(token)
    os.replace(fresh, path)


def test_a_token_may_come_from_the_environment(guarded: LongbowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_TOKEN", TOKEN)
    with connect(guarded, token_env="OUR_TOKEN") as client:
        client.readiness()
    monkeypatch.delenv("OUR_TOKEN")
    with pytest.raises(ConfigError, match="no environment variable OUR_TOKEN"):
        connect(guarded, token_env="OUR_TOKEN")


@pytest.mark.parametrize(
    ("match", "credentials"),
    [
        ("token and token_file are both set", {"token": TOKEN, "token_file": "f"}),
        ("token: the token holds a space", {"token": f"{TOKEN} x"}),
        ("token: the token holds a space, a line break", {"token": f"{TOKEN}\r\nx-admin: 1"}),
        ("not ASCII", {"token": f"{TOKEN}\N{LATIN SMALL LETTER E WITH ACUTE}"}),
        ("over the limit of 4096", {"token": TOKEN * 400}),
        ("token_header: 'X-API-KEY' is no header name", {"token": TOKEN, "token_header": "X-API-KEY"}),
        ("token_header: '' is no header name", {"token": TOKEN, "token_header": ""}),
        ("token_header", {"token": TOKEN, "token_header": "grpc-status"}),
        ("'-bin'", {"token": TOKEN, "token_header": "token-bin"}),
    ],
)
def test_a_token_that_cannot_travel_is_refused_without_showing_it(match: str, credentials: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        Credentials(**credentials)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("address", ["db.example:3000", "10.1.2.3:3000", "[2001:db8::1]:3000", "0.0.0.0:3000"])
def test_a_token_goes_to_another_machine_only_over_tls(address: str) -> None:
    with pytest.raises(ConfigError, match=r"everybody on the way could read.*allow_plaintext_token") as caught:
        LongbowSettings(address, credentials=Credentials(token=TOKEN))
    assert TOKEN not in str(caught.value)
    LongbowSettings(f"grpc+tls://{address}", credentials=Credentials(token=TOKEN))
    LongbowSettings(address, credentials=Credentials(token=TOKEN, allow_plaintext_token=True))


@pytest.mark.parametrize("address", ["127.0.0.1:3000", "localhost:3000", "[::1]:3000", "127.9.9.9:3000"])
def test_a_token_may_stay_on_this_machine_without_tls(address: str) -> None:
    LongbowSettings(address, credentials=Credentials(token=TOKEN))
    with pytest.raises(ConfigError, match="everybody on the way"):
        LongbowSettings(address, "elsewhere:3001", credentials=Credentials(token=TOKEN))


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="name or password") as caught:
        LongbowSettings(f"grpc://user:{TOKEN}@h:1")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_a_server_that_others_reach_asks_who_they_are(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="--token-file"):
        LongbowServer(tmp_path, host=host)


@pytest.mark.parametrize("content", [b"", b"  \n", b"two words", b"\xff\xfe", b"x" * (MAX_TOKEN_BYTES + 1)])
def test_a_token_file_without_a_usable_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="the token"):
        LongbowServer(tmp_path / "rows", token_file=path)


def test_a_secret_shows_itself_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(TOKEN)
    of_settings = LongbowSettings("127.0.0.1:1", credentials=Credentials(token=TOKEN))
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>20}", f"{secret!r}", "{} {!r}".format(*[secret] * 2)]
    for value in (secret, of_settings, of_settings.credentials, [secret], {"token": secret}):
        shown += [repr(value), str(value), pprint.pformat(value)]
    shown += [repr(dataclasses.asdict(of_settings)), repr(dataclasses.replace(of_settings, streams=2))]
    shown += [repr(copy.copy(secret)), repr(copy.deepcopy(of_settings))]
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("x").info("settings %s %r", of_settings, secret)
    shown.append(caplog.text)
    assert all(TOKEN not in text for text in shown)
    assert all("***" in text for text in shown)
    assert not hasattr(secret, "__dict__")
    for value in (secret, of_settings):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(ConfigError, match="not pickled"):
                pickle.dumps(value, protocol)
    without = LongbowSettings("127.0.0.1:1", credentials=Credentials(token_file="f"))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(without, protocol)) == without
    assert copy.deepcopy(of_settings) == of_settings
    assert {Secret("a"): 1}[Secret("a")] == 1
    assert Secret("a") != "a"


@settings(max_examples=200)
@given(st.text(max_size=30), st.text(max_size=30))
def test_tokens_are_equal_when_their_texts_are(left: str, right: str) -> None:
    assert same_secret(left, right) == (left == right)
    assert same_secret(left, left)
    assert (Secret(left) == Secret(right)) == (left == right)


HEADER_VALUES = st.one_of(
    st.text(max_size=20),
    st.binary(max_size=20),
    st.tuples(st.sampled_from(["Bearer", "bearer", "BEARER", "Basic", ""]), st.text(max_size=10)).map(" ".join),
)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(["authorization", "x-api-key", "user-agent"]), st.lists(HEADER_VALUES, max_size=3))
)
def test_whatever_headers_come_at_most_one_token_is_taken_from_them(headers: dict[str, list[str | bytes]]) -> None:
    offered = offered_tokens(headers)
    assert len(offered) <= 1
    sent = headers.get("authorization", []) + headers.get("x-api-key", [])
    if offered:
        assert len(sent) == 1
        assert isinstance(sent[0], str)
        assert offered[0] in sent[0]
        assert not same_secret(offered[0], TOKEN)


@given(VISIBLE)
def test_what_a_client_sends_is_what_the_server_reads(token: str) -> None:
    for header in ("authorization", "x-api-key"):
        ((name, value),) = Credentials(token=token, token_header=header).headers()
        assert offered_tokens({name.decode(): [value.decode()]}) == [token]


@given(st.text(max_size=30))
def test_a_token_is_taken_exactly_when_a_header_can_carry_it(token: str) -> None:
    try:
        assert check_token(token, "Longbow token") == token
    except FletcherError:
        assert not token or not token.isascii() or not token.isprintable() or " " in token
    else:
        assert token.isascii()
        assert token.isprintable()


def test_white_space_around_a_token_in_a_file_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"\n  {TOKEN}\r\n\n")
    assert read_token_file(tmp_path / "token", "x") == TOKEN

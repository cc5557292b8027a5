"""HTTP that is too much, too slow, damaged or odd: an answer in the API's shape, or the connection's end."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from http_server import Serving, answer_of, ask, post, serving, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fletcher_core import Embedder
from fletcher_core.service.http import protocol

ALWAYS = {"input": "a", "inputs": "a"}


@pytest.fixture(scope="module")
def narrow(minilm: Embedder) -> Iterator[Serving]:
    """With small limits."""
    with serving(minilm, max_body_bytes=2000, max_items=5, body_timeout=0.5, max_connections=12) as service:
        yield service


def error_of(body: bytes, path: str = "/v1/embeddings") -> Any:
    """Checks the shape."""
    answer = json.loads(body)
    if path == "/embed":
        assert answer.keys() == {"error", "error_type"}
        return answer["error"]
    assert answer.keys() == {"error"}
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    return answer["error"]["message"]


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def test_bodies_that_are_too_large(narrow: Serving) -> None:
    large = {"input": "x" * 3000}
    for request in (post(large), chunked(*[b"x" * 500] * 5)):
        status, _, body = ask(narrow, request)
        assert (status, error_of(body)) == (413, "the request's body is over 2000 bytes: send fewer texts at a time")
    claims = b"POST /v1/embeddings HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n"
    assert ask(narrow, claims % (2**62))[0] == 413
    assert ask(narrow, claims % 10**40)[0] == 400  # by the parser
    assert ask(narrow, post({"input": ["a"] * 6}))[0] == 400
    assert ask(narrow, chunked(b'{"inp', b'ut": "a"}'))[0] == 200


def test_bodies_of_many_together(minilm: Embedder) -> None:
    """A body that is all there is may be of any size; beside others there must be room."""
    with serving(minilm, max_held_bytes=3000) as service, service.connect() as slow:
        assert ask(service, post({"input": "x" * 5000}))[0] == 200
        slow.sendall(post({"input": "x" * 2500})[:-3])
        wait_for(lambda: service.connections == 1)
        for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs")):
            status, headers, body = ask(service, post({field: "x" * 1000}, path))
            assert (status, headers["retry-after"]) == (429, "1")
            assert "bytes of requests that wait" in json.dumps(error_of(body, path))
        assert ask(service, post({"input": "x" * 100}))[0] == 200
        slow.sendall(post({"input": "x" * 2500})[-3:])
        assert answer_of(slow)[0] == 200
        assert ask(service, post({"input": "x" * 1000}))[0] == 200


def test_a_body_that_nobody_reads_ends_the_connection(narrow: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_REST_SECONDS", 0.3)
    with narrow.connect() as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: here\r\ncontent-length: 9000000\r\n\r\n")
        assert answer_of(connection)[0] == 413
        connection.sendall(b"x" * 1000)
        assert connection.recv(100) == b""


def test_a_slow_body(narrow: Serving) -> None:
    with narrow.connect() as connection:
        connection.sendall(post({"input": "a"})[:-3])
        status, headers, body = answer_of(connection)
        assert (status, headers["connection"]) == (408, "close")
        assert "within 0.5 s" in error_of(body)


@pytest.mark.parametrize("start", [b"", b"\r\n\r\n", b"POST /embed HT", b"GET /healthz HTTP/1.1\r\nhost: h\r\nx: "])
def test_a_head_that_does_not_come(http: Serving, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(protocol, "_HEAD_SECONDS", 0.3)
    with http.connect() as connection:
        connection.sendall(start)
        assert connection.recv(100) == b""
    if start:  # nor after a request that was answered; without a byte more it has the time to keep alive
        with http.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
            assert answer_of(connection)[0] == 200
            connection.sendall(start)
            assert connection.recv(100) == b""


def flood(connection: socket.socket, piece: bytes) -> None:
    """Send it until the server ends the connection."""
    try:
        for _ in range(100_000):
            connection.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        return
    pytest.fail("it reads on and on")


@pytest.mark.parametrize("piece", [b"x: y\r\n", b"y"])
def test_a_head_without_end(http: Serving, piece: bytes) -> None:
    with http.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\nx: ")
        flood(connection, piece * 50)
    assert ask(http, b"GET /healthz HTTP/1.1\r\nhost: here\r\nx: " + b"y" * 30_000 + b"\r\n\r\n")[0] == 200


def test_requests_behind_each_other(http: Serving) -> None:
    """In order; and a connection that only sends them is ended."""
    texts = [f"number {number}" for number in range(8)]
    with http.connect() as connection:
        connection.sendall(
            b"".join(post({"input": text}, "/v1/embeddings", f"x-request-id: {text[7:]}") for text in texts)
        )
        data = b""
        while data.count(b'"object":"list"') < 8:
            data += connection.recv(65536)
    ids = [line[14:] for line in data.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert ids == [b"%d" % number for number in range(8)]
    with http.connect() as connection:
        flood(connection, post({"input": "again"}) * 50)
    wait_for(lambda: http.batcher.queued_tokens == 0)


def test_more_connections_than_may_be(narrow: Serving) -> None:
    wait_for(lambda: not narrow.connections)
    idle = [narrow.connect() for _ in range(11)]
    try:
        assert ask(narrow, post({"input": "a"}))[0] == 200  # the last one that may be
        idle.append(narrow.connect())
        assert ask(narrow, post({"input": "a"}))[0] == 503
    finally:
        for connection in idle:
            connection.close()
    wait_for(lambda: not narrow.connections)
    assert ask(narrow, post({"input": "a"}))[0] == 200


def test_versions_and_expectations(http: Serving) -> None:
    status, headers, _ = ask(http, post({"input": "a"}, version="1.0"))
    assert (status, headers["connection"]) == (200, "close")
    with http.connect() as connection:
        request = post({"input": "a"}, "/v1/embeddings", "expect: 100-continue")
        head, body = request.split(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(body)
        assert answer_of(connection)[0] == 200


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
def test_a_wish_for_another_protocol_is_ignored(http: Serving, protocol: str) -> None:
    """As Java's own client and curl --http2 have it: also when it comes in pieces, and in chunks."""
    wish = f"connection: upgrade\r\nupgrade: {protocol}"
    with http.connect() as connection:
        for request in (post({"input": "a"}, "/v1/embeddings", wish), post({"input": "b" * 300_000}, "/embed", wish)):
            for piece in (request[:40], request[40:-5], request[-5:]):
                connection.sendall(piece)
                time.sleep(0.02)
            status, _, body = answer_of(connection)
            assert status == (422 if request.startswith(b"POST /embed ") else 200), body
        wished = chunked(b'{"inp', b'ut": "a"}').replace(b"host: here", b"host: here\r\n" + wish.encode())
        for request in (wished, b"GET /healthz HTTP/1.1\r\nhost: h\r\n" + wish.encode() + b"\r\n\r\n") * 2:
            connection.sendall(request)
            assert answer_of(connection)[0] == 200
    assert ask(http, b"CONNECT a:80 HTTP/1.1\r\nhost: here\r\n\r\n")[0] in (404, 405, 400)


@pytest.mark.parametrize(
    ("given", "answered"),
    [("a\r\nset-cookie: b", "a"), ("x" * 5000, "x" * 128), ("tidy-5", "tidy-5"), ("é", ""), ("a b", ""), ("", "")],
)
def test_the_request_s_id_carries_nothing_into_the_answer(http: Serving, given: str, answered: str) -> None:
    status, headers, _ = ask(http, post({"input": "a"}, "/v1/embeddings", f"x-request-id: {given}"))
    assert status == 200
    assert headers["x-request-id"] == answered or (not answered and len(headers["x-request-id"]) == 32)
    assert "set-cookie" not in headers


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_the_content_type_does_not_matter(http: Serving, kind: str) -> None:
    assert ask(http, post({"input": "a"}, "/v1/embeddings", f"content-type: {kind}"))[0] == 200


DAMAGED = [
    b"",
    b"null",
    b"[]",
    b"5",
    b'"a"',
    b"{",
    b'{"input": "a"',
    b'{"input": "a"}x',
    b'{"input": "\xff"}',
    b'{"input": "\xed\xa0\x80"}',
    b'{"input": "\\ud800"}',
    b'{"input": NaN}',
    b'{"input": Infinity}',
    b'{"input": 1e999}',
    b'{"input": "a", "dimensions": 1e999}',
    b'{"input": "a", "dimensions": 99999999999999999999999999}',
    b'{"input": "a", "dimensions": %b}' % (b"9" * 5000),
    b'{"input": [%b]}' % (b"9" * 5000),
    b'{"input": %b1%b}' % (b"[" * 2000, b"]" * 2000),
    b'{"input": "a", "x": %b%b}' % (b"[" * 200_000, b"]" * 200_000),
    b'{"a":' * 100_000,
    b'{"input": [[]]}',
    b'{"input": {}}',
    b'{"input": "a", "model": "\\u0000", "truncate": 0}',
    b'{"input": "a", "model": 5, "prompt_name": 5}',
    b'{"input": "a", "encoding_format": "\\ud800"}',
    '{"input": "a"}'.encode("utf-16"),
    b"\xef\xbb\xbf",
    b'{"inputs": "a", "prompt_name": "\\u0000", "input": "a", "model": "?"}',
]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
@pytest.mark.parametrize("body", DAMAGED)
def test_damaged_bodies_are_refused_in_the_api_s_shape(http: Serving, path: str, body: bytes) -> None:
    status, _, answer = ask(http, post(body if path != "/embed" else body.replace(b'"input"', b'"inputs"'), path))
    assert 400 <= status < 500
    assert error_of(answer, path)


def test_of_two_equal_keys_the_last_counts_and_others_are_ignored(http: Serving, minilm: Embedder) -> None:
    status, _, body = ask(http, post(b'{"input": [1], "x": [{}], "input": "a\\u0000", "user": null}'))
    assert status == 200
    assert json.loads(body)["data"][0]["embedding"] == pytest.approx(minilm.embed(["a\x00"])[0].tolist(), abs=2e-6)


def test_millions_of_wrong_items_are_refused_soon(http: Serving) -> None:
    """And with one complaint, not with millions."""
    for items in (b"null," * 1_600_000, b"[null]," * 1_000_000, b"1," * 4_000_000, b'"",' * 1_600_000):
        began = time.monotonic()
        status, _, body = ask(http, post(b'{"input": [%b 0]}' % items))
        assert status == 400
        assert len(body) < 500
        assert time.monotonic() - began < 20


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(["float", "base64", "query", "right", "a", 1, 384, 101]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = {
    "/v1/embeddings": ("input", "model", "encoding_format", "dimensions", "user", "other"),
    "/embed": ("inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions", "other"),
}


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_in_any_field_is_answered_or_refused(http: Serving, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(FIELDS)))
    body = data.draw(st.dictionaries(st.sampled_from(FIELDS[path]), JSON, max_size=4))
    if data.draw(st.booleans()):
        body[FIELDS[path][0]] = "a"
    status, headers, answer = ask(http, post(body, path))
    assert status == 200 or 400 <= status < 500
    assert headers["content-type"] == "application/json"
    if status != 200:
        error_of(answer, path)


@given(document=JSON)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_is_answered_or_refused(http: Serving, document: Any) -> None:
    status, _, answer = ask(http, post(document))
    assert status == 400
    error_of(answer)

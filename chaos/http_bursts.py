"""A seed and a number in, what to send to the service over HTTP out: a burst of connections, each with its bytes."""

import base64
import json
from dataclasses import dataclass
from random import Random
from typing import Any

from chaos.mutations import any_value, mutate, mutate_bytes, write_json

KINDS = ("json", "head", "framing", "bytes", "left")
_ENDS = ("read", "read", "half", "close", "reset")
_BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/embeddings", {"input": "a cat", "model": "", "encoding_format": "base64", "dimensions": 8, "user": "me"}),
    ("/v1/embeddings", {"input": ["a cat", "", "two words"], "encoding_format": "float"}),
    ("/v1/embeddings", {"input": [101, 4937, 102]}),
    ("/v1/embeddings", {"input": [[101, 4937, 102], [101, 102]], "dimensions": 384}),
    ("/embed", {"inputs": "a cat", "normalize": True, "truncate": True, "truncation_direction": "Right"}),
    ("/embed", {"inputs": ["a cat", "b"], "prompt_name": "query", "dimensions": 3}),
    ("/embed", {"inputs": [[101, 102]], "truncate": False}),
)
_GETS = ("/v1/models", "/info", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/nowhere")
_METHODS = ("GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "CONNECT", "TRACE", "PATCH", "get", "G\x00T", "PRI", "")
_PATHS = ("*", "", "//", "/%", "/%00", "/%ff%fe", "/é", "/v1/../embed", "http://h/embed", "/embed?" + "x" * 5000, "a:1")
_VERSIONS = ("1.1", "1.0", "0.9", "2.0", "9.9", "1", "", "1.1 ")
_NAMES = (
    *("content-length", "transfer-encoding", "expect", "connection", "upgrade", "x-request-id", "traceparent", "host"),
    *("x-fletcher-timeout", "authorization", "x-api-key", "content-encoding", "content-type", "baggage", "tracestate"),
    *("accept-encoding", "range", "", "a b", "é", "x" * 1000, "\x00", ":authority"),
)
_VALUES = (
    *("", "0", "-1", "+5", "5, 5", "99999999999999999999", "0x10", "1e3", "nan", "inf", "0.001", "1e-300", "5;a=b"),
    *("chunked", "chunked, chunked", "gzip, chunked", "identity", "100-continue", "close", "upgrade", "keep-alive"),
    *(
        "websocket",
        "h2c",
        "é\xff",
        "x" * 70_000,
        "\x00",
        "a\rb",
        "a\nb: c",
        "Bearer ",
        "00-" + "a" * 32 + "-" + "b" * 16,
    ),
    *("application/json; charset=utf-16", "bytes=0-5", ",".join(f"k{n}=v" for n in range(500))),
)


@dataclass(frozen=True)
class Sent:
    """What one connection sends, in `pieces`; how it `end`s: "read" waits for answers, "half" says first that it has
    sent all, "close" leaves, "reset" leaves rudely. Of a `whole` request an answer must come."""

    pieces: tuple[bytes, ...]
    end: str
    whole: bool = False

    def as_json(self) -> dict[str, Any]:
        """To be kept."""
        return {"pieces": [base64.b64encode(p).decode() for p in self.pieces], "end": self.end, "whole": self.whole}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Sent":
        """The other way round."""
        return cls(tuple(base64.b64decode(piece) for piece in saved["pieces"]), saved["end"], saved["whole"])


def burst(seed: int, case: int, only: str = "") -> tuple[str, list[Sent]]:
    """The kind of a case, and what its connections send."""
    random = Random(f"{seed}:{case}")
    kind = random.choice(KINDS)
    kind = only or kind
    make = {"json": _json, "head": _head, "framing": _framing, "bytes": _damaged, "left": _left}[kind]
    return kind, [make(random) for _ in range(random.choice((1, 4, 8)))]


def request(body: bytes, path: str, *lines: str, method: str = "POST", version: str = "1.1") -> bytes:
    """With the length of the body unless a line says something of it."""
    said = "\r\n".join((f"{method} {path} HTTP/{version}", "host: here", *lines))
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        said += f"\r\ncontent-length: {len(body)}"
    return said.encode("latin-1", "replace") + b"\r\n\r\n" + body


def _body(random: Random) -> tuple[str, bytes]:
    path, body = random.choice(_BODIES)
    return path, json.dumps(body).encode()


def _json(random: Random) -> Sent:
    path, body = _body(random)
    if random.random() < 0.1:
        document = {random.choice(("input", "inputs")): any_value(random)}
        body = write_json(document, random)
    else:
        body = mutate(body, random)
    return Sent(_cut(request(body, path, "connection: close"), random), "read", whole=True)


def _head(random: Random) -> Sent:
    path, body = _body(random)
    lines = [f"{random.choice(_NAMES)}: {random.choice(_VALUES)}" for _ in range(random.choice((1, 1, 2, 5)))]
    if random.random() < 0.05:
        lines += [f"x-{number}: y" for number in range(random.choice((100, 5000, 20_000)))]
    method = random.choice(_METHODS) if random.random() < 0.3 else "POST"
    version = random.choice(_VERSIONS) if random.random() < 0.3 else "1.1"
    path = random.choice((*_PATHS, *_GETS)) if random.random() < 0.3 else path
    return Sent(_cut(request(body, path, *lines, method=method, version=version), random), random.choice(_ENDS))


def _framing(random: Random) -> Sent:
    """Lengths and chunks that are not true, and requests behind each other."""
    path, body = _body(random)
    kind = random.randrange(6)
    if kind == 0:
        wrong = random.choice((0, len(body) - 1, len(body) + 1, 2**31, 2**40, 2**63, 10**30))
        data = request(body, path, f"content-length: {wrong}")
    elif kind == 1:
        data = request(body, path, "transfer-encoding: chunked", f"content-length: {len(body)}")
    elif kind == 2:
        sizes = (b"%x" % len(body), b"0", b"-1", b"fffffffffffffffff", b"5;" + b"x" * 5000, b"", b"zz", b"ffffffff")
        chunk = b"%b\r\n%b\r\n" % (random.choice(sizes), body)
        data = request(
            chunk + b"0\r\n" + random.choice((b"", b"a: b\r\n" * 3000)) + b"\r\n", path, "transfer-encoding: chunked"
        )
    elif kind == 3:
        one = request(body, path)
        data = one * random.choice((2, 3, 10, 100)) + random.choice((b"", one[: len(one) // 2], b"\r\n" * 50))
    elif kind == 4:
        gets = [request(b"", random.choice(_GETS), method="GET") for _ in range(random.choice((1, 5, 30)))]
        data = b"".join(gets) + request(body, path)
    else:
        pieces = [body[at : at + 3] for at in range(0, len(body), 3)]
        chunks = b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        wish = random.choice(("x: y", "connection: upgrade\r\nupgrade: h2c", "expect: 100-continue"))
        data = request(chunks + b"0\r\n\r\n", path, "transfer-encoding: chunked", wish)
        return Sent(_cut(data, random), "read", whole=True)
    return Sent(_cut(data, random), random.choice(_ENDS))


def _damaged(random: Random) -> Sent:
    path, body = _body(random)
    data = request(body, path, f"{random.choice(_NAMES)}: {random.choice(_VALUES)}")
    if random.random() < 0.1:
        data = random.choice(
            (random.randbytes(300), b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        )
    for _ in range(random.choice((1, 2, 5))):
        data = mutate_bytes(data, random)
    return Sent(_cut(data, random), random.choice(_ENDS))


def _left(random: Random) -> Sent:
    """A good request, large or small, whose client leaves somewhere on the way."""
    path, body = _body(random)
    if random.random() < 0.3:
        field = "input" if path != "/embed" else "inputs"
        body = json.dumps({field: ["words " * random.choice((1, 50))] * random.choice((1, 50, 300))}).encode()
    data = request(body, path) * random.choice((1, 1, 3))
    if random.random() < 0.5:
        data = data[: random.randrange(len(data))]
    return Sent(_cut(data, random), random.choice(("close", "reset")))


def _cut(data: bytes, random: Random) -> tuple[bytes, ...]:
    """Mostly in one piece."""
    if random.random() < 0.7 or len(data) < 2:
        return (data,)
    at = sorted(random.randrange(len(data)) for _ in range(random.choice((1, 3))))
    return tuple(data[first:last] for first, last in zip([0, *at], [*at, len(data)], strict=True))

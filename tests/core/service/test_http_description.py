"""What the service says of itself: OpenAPI, health and readiness, metrics, 404 and 405."""

import json
from typing import Any

import pytest
from http_server import Serving, ask, serving

from fletcher_core import Embedder

ROUTES = {
    "/v1/embeddings": "post",
    "/embed": "post",
    "/v1/models": "get",
    "/info": "get",
    "/healthz": "get",
    "/readyz": "get",
    "/metrics": "get",
}


def get(service: Serving, path: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    lines = [f"{method} {path} HTTP/1.1", "host: here", *headers]
    return ask(service, "\r\n".join(lines).encode() + b"\r\n\r\n")


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for each in value.values() for found in references(each)]
    return [found for each in value for found in references(each)] if isinstance(value, list) else []


def test_every_route_is_described_with_its_body_and_its_answers(http: Serving) -> None:
    status, _, body = get(http, "/openapi.json")
    schema = json.loads(body)
    assert status == 200
    assert schema["openapi"].startswith("3.")
    assert {path: next(iter(methods)) for path, methods in schema["paths"].items()} == ROUTES
    for reference in references(schema):
        place: Any = schema
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    for path, method in ROUTES.items():
        operation = schema["paths"][path][method]
        ok = operation["responses"]["200"]["content"]
        assert path == "/metrics" or ok["application/json"]["schema"]
        if method == "post":
            fields = operation["requestBody"]["content"]["application/json"]["schema"]
            assert fields["required"] == [{"/embed": "inputs"}.get(path, "input")]
            assert {"401", "413", "429", "503", "504"} <= operation["responses"].keys()
            assert operation["responses"]["429"]["content"]["application/json"]["schema"]
    assert "securitySchemes" not in schema["components"]
    assert get(http, "/docs")[0] == 200


def test_the_description_says_what_needs_a_key(minilm: Embedder) -> None:
    with serving(minilm, api_keys=("sesame",), metrics=False) as service:
        schema = json.loads(get(service, "/openapi.json")[2])
        assert schema["components"]["securitySchemes"].keys() == {"bearer", "header"}
        locked = {
            path for path, methods in schema["paths"].items() if any("security" in each for each in methods.values())
        }
        assert locked == {"/v1/embeddings", "/embed", "/v1/models", "/info"}
        assert "/metrics" not in schema["paths"]
        assert get(service, "/metrics")[0] == 404


def test_the_health_routes(http: Serving) -> None:
    health = json.loads(get(http, "/healthz")[2])
    assert health["status"] == "ok"
    assert health["uptime_seconds"] >= 0
    status, _, body = get(http, "/readyz")
    assert (status, json.loads(body)["ready"]) == (200, True)
    assert b"fletcher_request_duration_seconds_bucket" in get(http, "/metrics")[2]


@pytest.mark.parametrize(("path", "method"), [("/v1/embeddings", "GET"), ("/embed", "PUT"), ("/v1/models", "POST")])
def test_another_method_is_405_in_the_api_s_shape(http: Serving, path: str, method: str) -> None:
    status, headers, body = get(http, path, "content-length: 0", method=method)
    assert status == 405
    assert headers["allow"]
    assert "error" in json.loads(body)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/embed/", "/%2e%2e/etc", "/v1/embeddings/", "//embed"])
def test_another_path_is_404_in_the_api_s_shape(http: Serving, path: str) -> None:
    status, headers, body = get(http, path)
    assert status == 404
    assert "location" not in headers
    error = json.loads(body)["error"]
    assert isinstance(error, dict) if path.startswith("/v1/") else isinstance(error, str)
    assert f'route="{path}"'.encode() not in get(http, "/metrics")[2]  # no client adds to the metrics' labels

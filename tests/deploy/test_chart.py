"""The chart asks of Fletcher, Dagster and the image only what they have. These tests need no Helm."""

import re
import tomllib
from typing import Any

import click
import pytest
import typer.main
import yaml
from chart import CHART, EXAMPLES, ROOT, SCHEMA, TEMPLATES, VALUES, described, options, settings
from starlette.testclient import TestClient

from fletcher_core import Embedder
from fletcher_core.addresses import SCHEMES
from fletcher_core.commands.app import app
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.http import HttpService
from fletcher_core.service.readiness import Readiness
from fletcher_core.service.settings import ServiceSettings
from fletcher_core.telemetry.metrics import REGISTRY

SERVE = TEMPLATES["serve-deployment.yaml"]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")


def serve_command() -> click.Command:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return group.commands["serve"]


def options_of(command: click.Command) -> dict[str, click.Parameter]:
    return {option: parameter for parameter in command.params for option in parameter.opts}


def test_every_option_of_the_service_exists() -> None:
    used = options("serve-deployment.yaml")
    assert {"--host", "--port", "--api-key-file", "--tls-cert", "--longbow-ca"} <= used
    assert used <= set(options_of(serve_command()))


def test_every_option_of_the_code_location_exists() -> None:
    from dagster._cli.api import grpc_command

    used = options("dagster-deployment.yaml")
    assert {"--host", "--port", "--module-name"} <= used
    assert used <= set(options_of(grpc_command))


def test_every_variable_of_fletcher_that_is_set_is_read_somewhere() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "fletcher_core").rglob("*.py"))
    named = {name for text in TEMPLATES.values() for name in re.findall(r"name: (FLETCHER_\w+)", text)}
    assert "FLETCHER_LONGBOW_TOKEN" in named
    # What is in the values' comments and on the page counts too; the store's place is read by a user's definitions.
    named |= set(re.findall(r"FLETCHER_\w+", (CHART / "values.yaml").read_text("utf-8") + PAGE))
    assert 'dg.EnvVar("FLETCHER_STORE")' in PAGE
    for name in named - {"FLETCHER_STORE"}:
        assert f'"{name}"' in code, name


def test_what_probes_and_prometheus_ask_for_is_answered_without_a_key(minilm: Embedder) -> None:
    settings = ServiceSettings(api_keys=("secret",))
    batcher = Batcher(minilm, settings.batching)
    paths = {path for text in TEMPLATES.values() for path in re.findall(r"path: (/[a-z]+z)\b", text)}
    paths |= set(re.findall(r"path: (/metrics)", TEMPLATES["serve-monitor.yaml"]))
    assert paths == {"/healthz", "/readyz", "/metrics"}
    try:
        with TestClient(HttpService(batcher, settings, Readiness(batcher, 60.0)).app) as client:
            for path in paths:
                assert client.get(path).status_code == 200, path
            assert client.get("/info").status_code == 401
    finally:
        batcher.close(5.0)


def test_probes_allow_as_long_as_the_service_takes_to_find_out() -> None:
    readiness = re.search(r"readinessProbe:.*?timeoutSeconds: (\d+)", SERVE, re.DOTALL)
    assert readiness is not None
    assert int(readiness[1]) > ServiceSettings().probe_timeout


def test_ports_and_the_drain_are_the_services_own() -> None:
    defaults = {name: parameter.default for name, parameter in options_of(serve_command()).items()}
    serve = VALUES["serve"]
    assert serve["httpPort"] == defaults["--port"]
    assert serve["drainSeconds"] == defaults["--drain-timeout"]
    assert f"--flight-port {serve['flightPort']}" in (ROOT / "docs" / "service.md").read_text("utf-8")
    assert "add .preStopSeconds .drainSeconds 10" in SERVE  # of which the drain has to be over before the kill


def test_the_models_name_and_the_queues_metric_exist(minilm: Embedder) -> None:
    assert VALUES["model"]["name"] == options_of(serve_command())["--model"].default
    asked = set(re.findall(r"name: (fletcher_\w+)", TEMPLATES["serve-autoscaling.yaml"]))
    assert asked == {"fletcher_queue_tokens"}
    assert asked <= set(REGISTRY._names_to_collectors)


def test_dagsters_probe_asks_for_the_service_that_its_server_has() -> None:
    import inspect

    from dagster._grpc import server

    asked = set(re.findall(r"service: (\w+)\}", TEMPLATES["dagster-deployment.yaml"]))
    assert len(asked) == 1
    assert f'_health_servicer.set("{asked.pop()}", ' in inspect.getsource(server)


def test_the_chart_is_of_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["version"], chart["appVersion"]) == (project, project)


@pytest.mark.parametrize("path", settings(VALUES))
def test_every_value_is_in_the_schema_in_the_templates_and_on_the_page(path: str) -> None:
    described(path)
    used = "".join(TEMPLATES.values())
    assert f".{path.rsplit('.', 1)[-1]}" in used, path
    assert f"`{path}`" in PAGE, path


def test_the_store_may_be_wherever_fletcher_can_have_it() -> None:
    pattern = described("store.url")["pattern"]
    for scheme in SCHEMES:
        assert re.match(pattern, f"{scheme}://bucket/folder"), scheme
    for address in ("/vectors", "ftp://host/folder", "s3://", "s3://key:secret@bucket"):
        assert not re.match(pattern, address), address


def test_the_schema_has_no_value_that_the_chart_does_not_have() -> None:
    def paths(part: dict[str, Any], above: str = "") -> set[str]:
        part = SCHEMA["definitions"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part
        below = part.get("properties")
        if not below or above.endswith("resources."):
            return {above.rstrip(".")}
        return set().union(*(paths(value, f"{above}{name}.") for name, value in below.items()))

    assert paths(SCHEMA) - {"global"} == set(settings(VALUES))


@pytest.mark.parametrize("path", settings(VALUES))
def test_the_page_tells_each_values_default(path: str) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{path}` |")]
    default = settings(VALUES)[path]
    shown = row.split("|")[2].strip().strip("`")
    if path.endswith("resources"):
        assert yaml.safe_load(shown) == default
    else:
        told = {True: "true", False: "false", "": "", None: ""}.get(
            default if isinstance(default, bool | str) else None
        )
        assert shown == (told or str(default) if default not in ({}, [], "") else ""), path


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_set_values_that_there_are(file: Any) -> None:
    example = yaml.safe_load(file.read_text("utf-8"))
    for path in settings(example):
        parts = path.split(".")
        assert any(".".join(parts[:length]) in settings(VALUES) for length in range(1, len(parts) + 1)), path
    assert f"examples/{file.name}" in PAGE


def test_nothing_runs_as_root_or_writes_to_its_image() -> None:
    for name, text in TEMPLATES.items():
        starts = len(re.findall(r"^\s*containers:", text, re.MULTILINE))
        assert text.count('include "fletcher.podSecurity"') == starts, name
    common = TEMPLATES["_pods.tpl"]
    for line in ("runAsNonRoot: true", "readOnlyRootFilesystem: true", "drop: [ALL]", "type: RuntimeDefault"):
        assert line in common

"""The dashboard and the alerts ask for what Fletcher counts, all of it, and Prometheus understands and answers them."""

import json
import os
import re
import subprocess
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring import dashboard
from deploy.monitoring.installation import NotInstalled, program
from deploy.monitoring.queries import ALERTS, FOLDER, Expression, of_alerts, of_dashboard
from deploy.monitoring.verify import exercise, prometheus
from fletcher_core.telemetry.metrics import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
EXPRESSIONS = [*of_dashboard(dashboard.FILE, "1m"), *of_alerts()]
PANELS = [panel for panel in json.loads(dashboard.FILE.read_text("utf-8"))["panels"] if panel["type"] != "row"]
# What Prometheus itself gives a series, and names the state of a rule by.
_OF_PROMETHEUS = {"up": {"job", "instance"}}
# How long the real Prometheus scrapes before it is asked; more finds nothing else, but for figures worth a look.
_SECONDS = float(os.environ.get("FLETCHER_DASHBOARD_SECONDS", "4"))


def exported() -> dict[str, set[str]]:
    """Every series' name in the exposition, and its labels."""
    series = dict(_OF_PROMETHEUS)
    for collector in set(REGISTRY._collector_to_names):
        (family,) = collector.describe()
        own = getattr(collector, "_labelnames", getattr(family, "_labelnames", ()))
        labels = {"job", "instance", *own}
        endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[family.type]
        for ending in endings:
            series[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return series


def metrics_of(promql: str) -> set[str]:
    return set(re.findall(r"(?<![\w:\"])(?:fletcher_\w+|up)\b(?!\")", re.sub(r'"[^"]*"', '""', promql)))


def labels_of(promql: str) -> set[str]:
    """Labels in selectors and in groupings."""
    bare = re.sub(r'"[^"]*"', '""', promql)
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"\"", bare)
    grouped = [name for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare) for name in re.split(r"[,\s]+", names)]
    return {*selected, *grouped} - {""}


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return program("promtool")
    except NotInstalled as reason:
        pytest.skip(str(reason))


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_is_what_its_source_makes() -> None:
    assert dashboard.FILE.read_text("utf-8") == dashboard.text(), "run: python -m deploy.monitoring.dashboard"


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.owner)
def test_every_metric_and_label_that_is_asked_for_exists(expression: Expression) -> None:
    known = exported()
    names = metrics_of(expression.promql)
    assert names or expression.promql.startswith("vector("), "asks for nothing"
    assert names <= set(known)
    assert labels_of(expression.promql) <= set().union(*(known[name] for name in names), set())


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set().union(*(metrics_of(each.promql) for each in of_dashboard(dashboard.FILE, "1m")))
    families = {next(iter(collector.describe())).name for collector in set(REGISTRY._collector_to_names)}
    missing = {family for family in families if not any(name.startswith(family) for name in shown)}
    assert not missing


def test_the_check_of_names_and_labels_sees_a_wrong_one() -> None:
    promql = 'sum by (le, nobody) (rate(fletcher_none_total{stage="up", no!~"x"}[5m])) > scalar(fletcher:limit)'
    assert metrics_of(promql) == {"fletcher_none_total"}
    assert labels_of(promql) == {"le", "nobody", "stage", "no"}


def test_panels_lie_side_by_side_and_say_what_they_show() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["type"] in {"stat", "timeseries", "heatmap", "state-timeline"}
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations((panel["gridPos"] for panel in PANELS), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or apart, (one, other)


def test_histograms_are_asked_for_by_bucket() -> None:
    """Grafana makes a heatmap of buckets only from series that have `le`."""
    for panel in PANELS:
        for target in panel["targets"]:
            if target["format"] == "heatmap":
                assert "le" in labels_of(target["expr"]), panel["title"]
                assert target["legendFormat"] == "{{le}}"


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_every_alert_says_what_to_do_and_leads_to_its_part_of_the_documentation() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / "dashboards.md").read_text("utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(alerts()) >= 12
    for alert in alerts():
        said = alert["annotations"]
        assert said["summary"]
        assert said["description"], alert["alert"]
        file, _, anchor = said["runbook"].partition("#")
        assert file == "docs/dashboards.md"
        assert anchor == alert["alert"].lower()
        assert anchor in anchors
        assert alert["labels"]["severity"] in {"warning", "critical"}


def test_every_alert_has_an_example_that_fires_and_one_that_does_not() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text("utf-8"))["tests"]
    quiet = {case["alertname"] for test in tests for case in test.get("alert_rule_test", [])}
    fires = {
        re.findall(r'alertname="(\w+)"', case["expr"])[0]
        for test in tests
        for case in test.get("promql_expr_test", [])
        if case["exp_samples"]
    }
    names = {alert["alert"] for alert in alerts()}
    assert quiet == names
    assert fires == names


def test_promtool_accepts_the_configuration_and_the_rules(promtool: Path) -> None:
    run(promtool, "check", "config", FOLDER / "prometheus.yml")


def test_alerts_fire_when_they_should_and_only_then(promtool: Path) -> None:
    run(promtool, "test", "rules", FOLDER / "alerts_test.yml")


def test_promtool_parses_every_query_of_the_dashboard(promtool: Path, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:query{number}", "expr": each.promql}
        for number, each in enumerate(of_dashboard(dashboard.FILE, "1m"))
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    run(promtool, "check", "rules", file)


def test_every_query_has_a_result_and_every_rule_is_evaluated_by_a_real_prometheus(tmp_path: Path) -> None:
    """Without a model: `python -m deploy.monitoring.verify` embeds, too."""
    try:
        program("prometheus")
    except NotInstalled as reason:
        pytest.skip(str(reason))
    seed = 1
    print(f"seed {seed}")
    with exercise("--without-model", "--seed", f"{seed}") as target, prometheus(target, 0.25, tmp_path) as running:
        since = time.time()
        time.sleep(_SECONDS)
        answers = [running.answer(each, since, 0.25) for each in of_dashboard(dashboard.FILE, "2s")]
        assert [answer.owner for answer in answers if answer.series == 0] == []
        assert running.unsound_rules() == {}
        assert running.ask("label/job/values", **{"match[]": "fletcher_vectors_total"}) == ["fletcher"]
        assert "FletcherPanic" in running.firing()

"""Every PromQL expression of the dashboard and of the alerts: their files in, what Prometheus can run out."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
ALERTS = FOLDER / "alerts.yml"


@dataclass(frozen=True)
class Expression:
    """A PromQL expression and the panel or rule that it belongs to."""

    owner: str
    promql: str


def of_dashboard(file: Path, window: str) -> list[Expression]:
    """Those of all panels, as Grafana sends them: all jobs and instances, `window` as `$__rate_interval`."""
    return [
        Expression(f"{panel['title']} {target['refId']}", _filled(target["expr"], window))
        for panel in json.loads(file.read_text("utf-8"))["panels"]
        for target in panel.get("targets", [])
    ]


def _filled(promql: str, window: str) -> str:
    values = {"$__rate_interval": window, "$job": ".*", "$instance": ".*"}
    for name, value in values.items():
        promql = promql.replace(name, value)
    return promql


def of_alerts(file: Path = ALERTS) -> list[Expression]:
    """Those of all rules, alerts and recorded limits."""
    return [
        Expression(rule.get("alert") or rule["record"], rule["expr"])
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    ]

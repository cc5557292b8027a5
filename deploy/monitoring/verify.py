"""Every query of the dashboard and every alert against a real Prometheus, while all metrics move.

    python -m deploy.monitoring.verify [--seconds 60] [--json FILE]         # deploy/monitoring/exercise.py moves them
    python -m deploy.monitoring.verify --target localhost:8080              # a running `fletcher serve` does

Prints each panel's query with its series and their last value. Exits with 1 if one has none, or a rule cannot be
evaluated. Of a service some are empty by right: what never happened there, or was never asked for.
"""

import argparse
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.monitoring.dashboard import FILE
from deploy.monitoring.installation import NotInstalled, program
from deploy.monitoring.queries import ALERTS, FOLDER, Expression, of_alerts, of_dashboard

_START_SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """What Prometheus said to an expression: how many series have a number last, and the largest of these."""

    owner: str
    promql: str
    series: int
    last: float | None


class Prometheus:
    """A running Prometheus, asked by its HTTP API. `url` is its root."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer. Raises ValueError with Prometheus' own words when it cannot answer."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error

    def answer(self, expression: Expression, since: float, step: float) -> Answer:
        """The expression over the time since `since` (seconds of the epoch), as a panel asks for it."""
        data = self.ask("query_range", query=expression.promql, start=f"{since}", end=f"{time.time()}", step=f"{step}")
        lasts = [number for series in data["result"] if (number := _last(series["values"])) is not None]
        return Answer(expression.owner, expression.promql, len(lasts), max(lasts) if lasts else None)

    def unsound_rules(self) -> dict[str, str]:
        """The rules that Prometheus could not evaluate, and why."""
        rules = [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
        return {rule["name"]: rule.get("lastError", rule["health"]) for rule in rules if rule["health"] != "ok"}

    def firing(self) -> list[str]:
        """Names of the alerts that fire or are about to."""
        return sorted({alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"]})


def _last(values: list[tuple[float, str]]) -> float | None:
    numbers = [float(value) for _, value in values]
    return next((number for number in reversed(numbers) if not math.isnan(number)), None)


@contextmanager
def prometheus(target: str, scrape_seconds: float, folder: Path) -> Iterator[Prometheus]:
    """A real Prometheus that scrapes `target` and evaluates our alerts, by our prometheus.yml but for the addresses.

    Raises NotInstalled when there is none, RuntimeError with its last lines when it does not start.
    """
    binary = program("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    config["global"] = {name: f"{round(scrape_seconds * 1000)}ms" for name in config["global"]}
    config["rule_files"] = [str(ALERTS)]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "fletcher"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w+") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            running = Prometheus(f"http://{address}")
            deadline = time.monotonic() + _START_SECONDS
            # It first looks for targets some 5 s after it began.
            while not (_answers(f"{running.url}/-/ready") and running.ask("query", query="up")["result"]):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"Prometheus does not start: {log.read()[-2000:]}")
                time.sleep(0.05)
            yield running
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def exercise(*arguments: str) -> Iterator[str]:
    """A process that moves all metrics, by `deploy.monitoring.exercise`; the address that shows them.

    Raises RuntimeError when it ends or shows nothing.
    """
    port = free_port()
    command = [sys.executable, "-m", "deploy.monitoring.exercise", "--port", str(port), *arguments]
    process = subprocess.Popen(command, cwd=FOLDER.parents[1])
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/metrics"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nothing shows metrics: {' '.join(command)}")
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """The command line; its exit status out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long Prometheus scrapes before it is asked")
    parser.add_argument("--target", help="scrape this running service instead of moving the metrics here")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the answers to this file")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            moving = nullcontext(arguments.target) if arguments.target else exercise("--seed", str(arguments.seed))
            with moving as target, prometheus(target, 1.0, Path(folder)) as running:
                print(f"seed {arguments.seed}, {target} scraped every second for {arguments.seconds:.0f} s", flush=True)
                began = time.time()
                time.sleep(arguments.seconds)
                window = "15s" if arguments.seconds >= 30 else "4s"
                answers = [running.answer(each, began, 1.0) for each in of_dashboard(FILE, window)]
                alerts = [running.answer(each, began, 1.0) for each in of_alerts()]
                unsound, firing = running.unsound_rules(), running.firing()
    except NotInstalled as reason:
        print(f"not verified: {reason}", file=sys.stderr)
        return 1
    _print(answers, alerts)
    empty = [answer.owner for answer in answers if answer.series == 0]
    print(f"{len(answers)} queries, {len(empty)} without a result{': ' if empty else ''}{', '.join(empty)}")
    print(f"{len(alerts)} rules, {len(unsound)} that cannot be evaluated {unsound or ''}")
    print(f"pending or firing: {', '.join(firing) or 'none'}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(answer) for answer in answers], indent=1), "utf-8")
    return 1 if empty or unsound else 0


def _print(answers: list[Answer], alerts: list[Answer]) -> None:
    print(f"{'panel, query':<36}{'series':>7}{'last value':>14}")
    for answer in answers:
        print(f"{answer.owner:<36}{answer.series:>7}{'-' if answer.last is None else f'{answer.last:.4g}':>14}")
    print(f"{'rule':<44}{'series now':>11}")
    for answer in alerts:
        print(f"{answer.owner:<44}{answer.series:>11}")


if __name__ == "__main__":
    sys.exit(main())

"""Metrics of a process that ends before anybody scrapes it: sent to a Pushgateway, or by OTLP to a collector.

A push never fails the work that it tells of, and never holds it up for longer than `PATIENCE`: what went wrong is
logged. What is pushed are the counters of the process, since it began, under `job` and `grouping`.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPException
from types import TracebackType
from urllib.parse import urlsplit

from prometheus_client import pushadd_to_gateway

from fletcher_core.errors import ConfigError
from fletcher_core.telemetry.metrics import REGISTRY

_LOG = logging.getLogger(__name__)

PATIENCE = 4.0
"""Seconds that a push may hold anybody up, however dead its receiver is."""
_TIMEOUT = 2.0  # of one wait for the network within a push
EVERY = 15.0
"""Seconds between two pushes of a long run: as often as Prometheus scrapes by most settings."""
OTLP = "otlp"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

Send = Callable[[], None]  # raises OSError or HTTPException


def push_metrics(gateway: str, *, job: str, grouping: Mapping[str, str]) -> bool:
    """Send all metrics of this process to a Pushgateway once; whether they arrived. Why not is logged.

    Metrics of the same names that the group has are replaced, others stay. Takes `PATIENCE` seconds at most.

    Args:
        gateway: http://host:port of it.
        job: the label `job`.
        grouping: further labels of the group; few values, as the gateway keeps each group for ever.

    Raises:
        ConfigError: `gateway` is no such address.
    """
    return _bounded(_to_gateway(gateway, job, grouping), gateway)


def check_target(metrics: str) -> None:
    """Raises ConfigError when `metrics` is neither empty, `otlp`, nor the http(s) address of a Pushgateway, or when
    OpenTelemetry is not installed for `otlp`."""
    if metrics == OTLP:
        try:
            import fletcher_core.telemetry.otlp  # noqa: F401 - whether it can be
        except ImportError as error:
            raise ConfigError(
                "metrics is 'otlp' and OpenTelemetry is not installed: install Fletcher's extra `otel`"
            ) from error
    elif metrics:
        _check_address(metrics)


class Pusher:
    """Pushes while a `with` block runs, every `every` seconds, and once more at its end however it ends.

    Args:
        metrics: "" for nowhere, "otlp" for the endpoint that OTEL_EXPORTER_OTLP_METRICS_ENDPOINT or
            OTEL_EXPORTER_OTLP_ENDPOINT names, or the address of a Pushgateway.
        job, grouping: as for `push_metrics`; with OTLP, the service's name and attributes of the resource.
        every: seconds.

    Raises:
        ConfigError: as `check_target`.
    """

    def __init__(self, metrics: str, *, job: str, grouping: Mapping[str, str], every: float = EVERY) -> None:
        check_target(metrics)
        self._receiver = metrics
        self._every = every
        self._over = threading.Event()
        self._send = self._sender(metrics, job, grouping)
        self._thread = threading.Thread(target=self._run, name="fletcher-push", daemon=True)

    def __enter__(self) -> "Pusher":
        if self._send is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._send is None:
            return
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            _LOG.warning("metrics for %s: no answer in %.0f s, the last push is given up", self._receiver, PATIENCE)

    def _sender(self, metrics: str, job: str, grouping: Mapping[str, str]) -> Send | None:
        if metrics != OTLP:
            return _to_gateway(metrics, job, grouping) if metrics else None
        endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        if not endpoint:
            _LOG.warning("metrics is 'otlp' and neither %s nor %s is set: nothing is pushed", *_ENDPOINTS)
            return None
        from fletcher_core.telemetry.otlp import to_collector

        self._receiver = _without_secrets(endpoint)
        return to_collector(REGISTRY, job, grouping, _TIMEOUT)

    def _run(self) -> None:
        assert self._send is not None
        over = False
        while not over:
            over = self._over.wait(self._every)
            _attempt(self._send, self._receiver)


def _to_gateway(gateway: str, job: str, grouping: Mapping[str, str]) -> Send:
    _check_address(gateway)
    return lambda: pushadd_to_gateway(gateway, job, REGISTRY, dict(grouping), timeout=_TIMEOUT)


def _check_address(gateway: str) -> None:
    address = urlsplit(gateway)
    try:
        sound = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(
            f"metrics is {_without_secrets(gateway)!r}; give the address of a Pushgateway, such as http://host:9091, "
            "or 'otlp'"
        )
    if address.username is not None:
        raise ConfigError("metrics has a user name in its address, which is not sent: let a proxy add it")


def _bounded(send: Send, receiver: str) -> bool:
    """Whether `send` did it within `PATIENCE`: a name server or a trickle of bytes takes longer than timeouts say."""
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(_attempt(send, receiver)), name="fletcher-push", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not done:
        _LOG.warning("metrics for %s: no answer in %.0f s, the push is given up", receiver, PATIENCE)
    return any(done)


def _attempt(send: Send, receiver: str) -> bool:
    try:
        send()
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what the answer or a proxy's address may be
        _LOG.warning("metrics were not pushed to %s, the work goes on: %s", receiver, error)
        return False
    return True


def _without_secrets(address: str) -> str:
    return address.rsplit("@", 1)[-1] if "@" in address else address

"""The source of the Grafana dashboard: the metrics of `fletcher_core.telemetry.metrics` in, `fletcher.json` out.

python -m deploy.monitoring.dashboard      # after every change here; a test holds the file against its source
"""

import json
from itertools import count
from pathlib import Path

from deploy.monitoring.panels import Json, Query, buckets, in_words, rows_of, stat, states, timeseries

FILE = Path(__file__).parent / "grafana" / "dashboards" / "fletcher.json"
_COLUMNS = 24
# What load balancers, Prometheus and scanners ask for: none of it is work.
PROBES = "/(healthz|readyz|metrics|docs|openapi).*|other"

_SERIES = 'job=~"$job",instance=~"$instance"'
_REQUESTS = f'route!~"{PROBES}",{_SERIES}'
_FAILED = 'status=~"5..|FAILED"'
_RANGE = "[$__rate_interval]"


def _rate(metric: str, by: str = "", where: str = _SERIES) -> str:
    """How much a counter grows a second, all series together or `by` labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}{_RANGE}))"


def _quantile(share: float, histogram: str, by: str = "", where: str = _SERIES) -> str:
    return f"histogram_quantile({share}, {_rate(f'{histogram}_bucket', f'le, {by}' if by else 'le', where)})"


def _mean(histogram: str, by: str = "", where: str = _SERIES) -> str:
    return f"{_rate(f'{histogram}_sum', by, where)} / {_rate(f'{histogram}_count', by, where)}"


def _events(counter: str, by: str) -> str:
    """How often something rare happened in each step. A label's first event makes a new series, which `increase` does
    not see: where there was none before, the counter itself is what happened."""
    selected = f"{counter}{{{_SERIES}}}"
    grown = f"increase({selected}{_RANGE})"
    return f"sum by ({by}) (({selected} unless {selected} offset $__rate_interval) or {grown})"


_ERROR_SHARE = (
    f"({_rate('fletcher_request_duration_seconds_count', where=f'{_FAILED},{_REQUESTS}')} or vector(0))"
    f" / {_rate('fletcher_request_duration_seconds_count', where=_REQUESTS)}"
)
_HITS = f'result="hit",{_SERIES}'
_HIT_SHARE = (
    f"({_rate('fletcher_cache_requests_total', where=_HITS)} or vector(0)) / {_rate('fletcher_cache_requests_total')}"
)
_READY = {1: ("ready", "green"), 0: ("NOT READY", "red")}
_BREAKER = {0: ("closed", "green"), 1: ("half-open", "orange"), 2: ("open", "red")}

Row = tuple[str, int, list[tuple[int, Json]]]  # title, height, and panels with their widths, of 24


def _overview() -> Row:
    request = "fletcher_request_duration_seconds"
    numbers = [
        stat(
            "Texts a second",
            "Vectors that the engines computed. Texts that the cache knew are not among them.",
            Query(_rate("fletcher_vectors_total")),
            "cps",
        ),
        stat("Tokens a second", "Tokens that the engines computed.", Query(_rate("fletcher_tokens_total")), "cps"),
        stat(
            "p50",
            "Half of the requests were answered within this time.",
            Query(_quantile(0.5, request, where=_REQUESTS)),
            "s",
        ),
        stat(
            "p99",
            "99 of 100 requests were answered within this time.",
            Query(_quantile(0.99, request, where=_REQUESTS)),
            "s",
        ),
        stat(
            "Services",
            "Whether every service is reached and its engine computes what it should, as found at each scrape.",
            Query(
                f"min(fletcher_ready{{{_SERIES}}} and on (job, instance) up{{{_SERIES}}} == 1 or up{{{_SERIES}}} == 0)"
            ),
            "none",
            **in_words(_READY),
        ),
        stat(
            "Failed requests",
            "Share of the requests that ended in a failure of the service (HTTP 5xx, Flight FAILED).",
            Query(_ERROR_SHARE),
            "percentunit",
            limits=(0.001, 0.01),
        ),
        stat(
            "Device busy",
            "Share of the time during which the engines had work. Low while requests wait: the device is starved.",
            Query(_mean("fletcher_device_busy_ratio")),
            "percentunit",
            max=1,
        ),
        stat("Cache hits", "Share of look-ups that found a vector.", Query(_HIT_SHARE), "percentunit", max=1),
    ]
    return "Overview", 4, [(3, panel) for panel in numbers]


def _throughput() -> Row:
    request = "fletcher_request_duration_seconds"
    return (
        "Throughput and latency",
        8,
        [
            (
                12,
                timeseries(
                    "Throughput",
                    "Texts a second of each instance (left), tokens a second of all (right).",
                    [
                        Query(_rate("fletcher_vectors_total", "job, instance"), "texts, {{job}} {{instance}}"),
                        Query(_rate("fletcher_tokens_total"), "tokens, all", right_unit="cps"),
                    ],
                    "cps",
                ),
            ),
            (
                12,
                timeseries(
                    "Time to answer",
                    "Of all requests but probes. p99 far above p50: bursts, long texts, or a standby engine.",
                    [
                        Query(_quantile(share, request, where=_REQUESTS), f"p{share * 100:.0f}")
                        for share in (0.5, 0.9, 0.99)
                    ],
                    "s",
                ),
            ),
        ],
    )


def _requests() -> Row:
    request = "fletcher_request_duration_seconds"
    return (
        "Requests",
        8,
        [
            (
                8,
                timeseries(
                    "Requests",
                    "Answers a second by route and status.",
                    [Query(_rate(f"{request}_count", "route, status"), "{{route}} {{status}}")],
                    "reqps",
                    stacked=True,
                ),
            ),
            (
                8,
                buckets(
                    "Time to answer, all requests",
                    "How many requests a second took how long. Two bands are two kinds of requests.",
                    _rate(f"{request}_bucket", "le", _REQUESTS),
                    "s",
                ),
            ),
            (
                8,
                timeseries(
                    "p99 by route",
                    "99 of 100 requests of the route were answered within this time.",
                    [Query(_quantile(0.99, request, "route", _REQUESTS), "{{route}}")],
                    "s",
                ),
            ),
            (
                12,
                timeseries(
                    "Waiting tokens",
                    "Tokens in the queue before the engine. Steadily high: more comes than the engine computes.",
                    [Query(f"sum by (job, instance) (fletcher_queue_tokens{{{_SERIES}}})", "{{job}} {{instance}}")],
                    "short",
                ),
            ),
            (
                12,
                timeseries(
                    "Requests turned away",
                    "Before they were computed, by reason: overload is a full queue, deadline too long a wait.",
                    [Query(_rate("fletcher_rejected_requests_total", "reason"), "{{reason}}")],
                    "reqps",
                    stacked=True,
                ),
            ),
        ],
    )


def _stages() -> Row:
    stage = "fletcher_stage_duration_seconds"
    return (
        "Stages",
        9,
        [
            (
                12,
                timeseries(
                    "Busy seconds a second",
                    "How much of each second a stage worked, threads side by side added up. Stages overlap; the one "
                    "that is busy all the time sets the pace.",
                    [Query(_rate(f"{stage}_sum", "stage"), "{{stage}}")],
                    "short",
                    stacked=True,
                ),
            ),
            (
                12,
                timeseries(
                    "p99 of a piece of work",
                    "99 of 100 pieces (a window, a batch, a segment) of the stage took at most this time.",
                    [Query(_quantile(0.99, stage, "stage"), "{{stage}}")],
                    "s",
                ),
            ),
        ],
    )


def _device() -> Row:
    return (
        "Device",
        8,
        [
            (
                12,
                buckets(
                    "Utilization",
                    "Each second's share during which the engine had work; the colour is how many seconds fell there.",
                    f"sum by (le) (increase(fletcher_device_busy_ratio_bucket{{{_SERIES}}}{_RANGE}))",
                    "percentunit",
                ),
            ),
            (
                12,
                timeseries(
                    "Memory",
                    "Of the device: in use (active), kept for reuse (cache), the most so far (peak) and ever (limit); "
                    "on a CPU the engine's process (resident).",
                    [
                        Query(
                            f"max by (instance, kind) (fletcher_device_memory_bytes{{{_SERIES}}})",
                            "{{kind}} {{instance}}",
                        )
                    ],
                    "decbytes",
                ),
            ),
            (
                12,
                buckets(
                    "Tokens of a batch",
                    "Batches a second by their tokens, padding included. Small ones use a GPU badly.",
                    _rate("fletcher_batch_tokens_bucket", "le"),
                    "short",
                ),
            ),
            (
                12,
                timeseries(
                    "Padding",
                    "Share of a batch's tokens that is padding: work for nothing.",
                    [
                        Query(_mean("fletcher_padding_ratio"), "mean"),
                        Query(_quantile(0.9, "fletcher_padding_ratio"), "p90"),
                    ],
                    "percentunit",
                    most=1,
                ),
            ),
            (
                12,
                timeseries(
                    "Tokens of each device",
                    "Where an engine runs on several devices: what each of them computes a second, padding included.",
                    [Query(_rate("fletcher_pool_tokens_total", "device"), "device {{device}}")],
                    "short",
                ),
            ),
            (
                12,
                timeseries(
                    "Work of each device",
                    "Share of the time that a device of several had batches for, and how many it has now.",
                    [
                        Query(_rate("fletcher_pool_busy_seconds_total", "device"), "busy, device {{device}}"),
                        Query(f"sum by (device) (fletcher_pool_batches{{{_SERIES}}})", "batches, device {{device}}"),
                    ],
                    "none",
                ),
            ),
            (
                12,
                timeseries(
                    "Memory of each device",
                    "What a device of several needs now.",
                    [Query(f"sum by (device) (fletcher_pool_memory_bytes{{{_SERIES}}})", "device {{device}}")],
                    "decbytes",
                ),
            ),
            (
                12,
                timeseries(
                    "Devices that left and came back",
                    "Of an engine on several devices: lost or refused, and recovered. Meanwhile the others compute.",
                    [Query(_events("fletcher_pool_changes_total", "device, cause"), "device {{device}}, {{cause}}")],
                    "none",
                    bars=True,
                ),
            ),
        ],
    )


def _layers() -> Row:
    layer = "fletcher_layer_duration_seconds"
    return (
        "Layers",
        10,
        [
            (
                14,
                rows_of(
                    "Time of each layer",
                    "Mean time of each of the model's layers over a batch, of the batches that are sampled. A row that "
                    "turns red alone is one kernel's trouble; all rows together: larger batches or a slower device.",
                    Query(_mean(layer, "layer"), "{{layer}}"),
                    "layer",
                    "s",
                ),
            ),
            (
                10,
                timeseries(
                    "p99 by layer",
                    "99 of 100 sampled batches spent at most this time in the layer.",
                    [Query(_quantile(0.99, layer, "layer"), "{{layer}}")],
                    "s",
                ),
            ),
        ],
    )


def _cache() -> Row:
    return (
        "Cache",
        7,
        [
            (
                12,
                timeseries(
                    "Hit share",
                    "Share of look-ups that found a vector, which is then neither tokenized nor computed.",
                    [Query(_HIT_SHARE, "hits")],
                    "percentunit",
                    most=1,
                ),
            ),
            (
                12,
                timeseries(
                    "Look-ups",
                    "Look-ups a second by what they found.",
                    [Query(_rate("fletcher_cache_requests_total", "result"), "{{result}}")],
                    "cps",
                    stacked=True,
                ),
            ),
        ],
    )


def _failures() -> Row:
    invalid = "fletcher_output_invalid_total"
    return (
        "Failures",
        8,
        [
            (
                12,
                timeseries(
                    "Changes of engine",
                    "How often another engine took over (lost, refused, distrusted), and the first was taken back "
                    "(recovered).",
                    [Query(_events("fletcher_failovers_total", "from, to, cause"), "{{from}} → {{to}}, {{cause}}")],
                    "none",
                    bars=True,
                ),
            ),
            (
                12,
                timeseries(
                    "Quarantined rows",
                    "Rows that were set aside, by reason. `fletcher quarantine list` shows them.",
                    [Query(_events("fletcher_quarantined_rows_total", "reason"), "{{reason}}")],
                    "none",
                    bars=True,
                ),
            ),
            (
                12,
                timeseries(
                    "Invalid vectors",
                    "Vectors that the guard caught: not finite, or not of unit length. None of them left.",
                    [
                        Query(
                            f"sum by (job, instance) (increase({invalid}{{{_SERIES}}}{_RANGE}))", "{{job}} {{instance}}"
                        )
                    ],
                    "none",
                    bars=True,
                ),
            ),
            (
                12,
                timeseries(
                    "Panics",
                    "Ends that nobody planned: of an engine's process, or of a thread.",
                    [Query(_events("fletcher_panics_total", "where"), "{{where}}")],
                    "none",
                    bars=True,
                ),
            ),
        ],
    )


def _longbow() -> Row:
    return (
        "Longbow",
        7,
        [
            (
                12,
                states(
                    "Circuit breaker",
                    "closed: vectors are sent. open: the server failed and is left alone; segments wait in the store. "
                    "half-open: one attempt is under way.",
                    Query(f"max by (server) (fletcher_breaker_state{{{_SERIES}}})", "{{server}}"),
                    _BREAKER,
                ),
            ),
            (
                12,
                timeseries(
                    "Bytes exchanged",
                    "Arrow bytes a second, sent and received (read-back and searches).",
                    [Query(_rate("fletcher_longbow_bytes_total", "direction"), "{{direction}}")],
                    "Bps",
                ),
            ),
        ],
    )


def dashboard() -> Json:
    """The whole dashboard, as Grafana reads it."""
    panels: list[Json] = []
    ids = count(1)
    top = 0
    for title, height, members in (
        _overview(),
        _throughput(),
        _requests(),
        _stages(),
        _device(),
        _layers(),
        _cache(),
        _failures(),
        _longbow(),
    ):
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        panels.append(
            {"id": next(ids), "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        top, left = top + 1, 0
        for width, panel in members:
            if left + width > _COLUMNS:
                top, left = top + height, 0
            panels.append({"id": next(ids), "gridPos": {"h": height, "w": width, "x": left, "y": top}, **panel})
            left += width
        top += height
    return {
        "uid": "fletcher",
        "title": "Fletcher",
        "description": "Fletcher's service and runs: throughput, latency, stages, device, layers, cache and failures.",
        "tags": ["fletcher"],
        "schemaVersion": 42,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _variables() -> list[Json]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    every = {"selected": True, "text": ["All"], "value": ["$__all"]}
    chosen = [
        ("job", "Job", "label_values(fletcher_vectors_total, job)"),
        ("instance", "Instance", 'label_values(fletcher_vectors_total{job=~"$job"}, instance)'),
    ]
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1},
        *(
            {
                "name": name,
                "label": label,
                "type": "query",
                "datasource": source,
                "query": {"query": query, "refId": name},
                "definition": query,
                "refresh": 2,  # when the time range changes
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",  # pushed figures have no instance
                "current": every,
            }
            for name, label, query in chosen
        ),
    ]


def text() -> str:
    """The dashboard's file, to the last byte."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")

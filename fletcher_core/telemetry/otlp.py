"""A Prometheus registry as OpenTelemetry has it: families in, one OTLP export out. Needs the extra `otel`.

Names stay those of Prometheus, so that the same queries work; the unit comes from a name's end. Sums and histograms are
cumulative since the process began.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

_BEGAN = time.time_ns()
_UNITS = {"_seconds": "s", "_bytes": "By", "_ratio": "1"}
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def to_collector(
    registry: CollectorRegistry, job: str, grouping: Mapping[str, str], timeout: float
) -> Callable[[], None]:
    """What sends the registry, as of the moment when it is called, to the endpoint that the environment names.

    Args:
        job: the service's name, unless OTEL_SERVICE_NAME gives one.
        grouping: further attributes of the resource.
        timeout: seconds for an export, tries included. It raises OSError when that failed.
    """
    exporter = OTLPMetricExporter(timeout=timeout)
    name = os.environ.get("OTEL_SERVICE_NAME") or job
    resource = Resource.create({"service.name": name, **grouping})

    def send() -> None:
        if exporter.export(metrics_data(registry, resource)) is not MetricExportResult.SUCCESS:
            raise OSError("the export failed; OpenTelemetry's own log says why")

    return send


def metrics_data(registry: CollectorRegistry, resource: Resource) -> MetricsData:
    """All families of the registry that have samples."""
    now = time.time_ns()
    metrics = [_metric(family, now) for family in registry.collect() if family.samples]
    scope = ScopeMetrics(InstrumentationScope("fletcher"), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, now: int) -> Metric:
    data: Sum | Gauge | Histogram
    if family.type == "histogram":
        data = Histogram(list(_histograms(family, now)), _CUMULATIVE)
    elif family.type == "counter":
        data = Sum(list(_numbers(family, f"{family.name}_total", now)), _CUMULATIVE, True)
    else:
        data = Gauge(list(_numbers(family, family.name, now)))
    name = f"{family.name}_total" if family.type == "counter" else family.name
    unit = next((unit for ending, unit in _UNITS.items() if family.name.endswith(ending)), "1")
    return Metric(name, family.documentation, unit, data)


def _numbers(family: Family, name: str, now: int) -> Iterator[NumberDataPoint]:
    for sample in family.samples:
        if sample.name == name:
            yield NumberDataPoint(sample.labels, _BEGAN, now, sample.value)


def _histograms(family: Family, now: int) -> Iterator[HistogramDataPoint]:
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        series.setdefault(labels, []).append(sample)
    for labels, samples in series.items():
        buckets = [(float(s.labels["le"]), int(s.value)) for s in samples if s.name.endswith("_bucket")]
        bounds, counts = [bound for bound, _ in buckets[:-1]], _apart([count for _, count in buckets])
        total = next(s.value for s in samples if s.name.endswith("_sum"))
        yield HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=_BEGAN,
            time_unix_nano=now,
            count=sum(counts),
            sum=total,
            bucket_counts=counts,
            explicit_bounds=bounds,
            min=None,  # type: ignore[arg-type]  # which Prometheus does not keep, and the protocol does not need
            max=None,  # type: ignore[arg-type]
        )


def _apart(cumulative: Sequence[int]) -> list[int]:
    """Prometheus counts in each bucket what is in the smaller ones too."""
    return [count - before for before, count in zip([0, *cumulative], cumulative, strict=False)]

"""What Prometheus can see of Fletcher: every metric, with its labels and its unit, in one place.

Whoever does the work counts here; the service shows `REGISTRY` at `/metrics`, and a run may push it. Names and units
are by Prometheus' rules (base units, `_total` for counters); each label has few values, known beforehand, so that the
number of series stays bounded: no text, id, path or model ever becomes a label.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from fletcher_core.telemetry.asked import Asked
from fletcher_core.telemetry.busy_seconds import BusySeconds

REGISTRY = CollectorRegistry()

# Seconds: from a query that a cache answers to a call that waits for its deadline.
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_LAYER_SECONDS = (
    0.00001,
    0.00002,
    0.00005,
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
)
_PADDING = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

VECTORS = Counter("fletcher_vectors", "Vectors that an engine computed.", registry=REGISTRY)
TOKENS = Counter("fletcher_tokens", "Tokens that an engine computed, without padding.", registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "fletcher_request_duration_seconds",
    "From a request's arrival at the service to its answer.",
    ["route", "status"],  # of the service's own routes, and the HTTP status or Flight's OK, FAILED
    buckets=_REQUEST_SECONDS,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "fletcher_stage_duration_seconds",
    "One piece of a stage's work: diff, read, tokenize, queue, compute, guard, write or send.",
    ["stage"],
    buckets=_STAGE_SECONDS,
    registry=REGISTRY,
)
LAYER_SECONDS = Histogram(
    "fletcher_layer_duration_seconds",
    "A layer of the model over one batch, of the batches that are sampled.",
    ["layer"],
    buckets=_LAYER_SECONDS,
    registry=REGISTRY,
)
DEVICE_BUSY = BusySeconds(
    "fletcher_device_busy_ratio",
    "Share of each second during which the engine had work, 0 to 1.",
    buckets=_SHARES,
    registry=REGISTRY,
)
DEVICE_MEMORY = Asked(
    GaugeMetricFamily,
    "fletcher_device_memory_bytes",
    "Memory of the engine's device: active, cache, peak and limit of a GPU; resident, of its process, on a CPU.",
    "kind",
    registry=REGISTRY,
)
BATCH_TOKENS = Histogram(
    "fletcher_batch_tokens", "Tokens of a batch, padding included.", buckets=_TOKENS, registry=REGISTRY
)
PADDING = Histogram(
    "fletcher_padding_ratio", "Share of a batch's tokens that is padding.", buckets=_PADDING, registry=REGISTRY
)
CACHE_REQUESTS = Asked(
    CounterMetricFamily, "fletcher_cache_requests", "Look-ups of vectors known already.", "result", registry=REGISTRY
)  # hit or miss
READY = Gauge("fletcher_ready", "Whether the service's latest probe found the engine well: 1, or 0.", registry=REGISTRY)
QUEUE_TOKENS = Gauge("fletcher_queue_tokens", "Tokens that wait for the engine.", registry=REGISTRY)
REJECTED = Counter(
    "fletcher_rejected_requests", "Requests turned away before they were computed.", ["reason"], registry=REGISTRY
)  # overload, deadline, draining, too_large, unauthorized, disconnected
OUTPUT_INVALID = Counter(
    "fletcher_output_invalid",
    "Vectors that were not finite, or not of unit length where they must be.",
    registry=REGISTRY,
)
QUARANTINED = Counter("fletcher_quarantined_rows", "Rows set aside.", ["reason"], registry=REGISTRY)
FAILOVERS = Counter(
    "fletcher_failovers",
    "Changes from one engine to another.",
    ["from", "to", "cause"],  # engines' names; lost, refused, distrusted or recovered
    registry=REGISTRY,
)
POOL_TOKENS = Counter(
    "fletcher_pool_tokens",
    "Tokens that a device of several computed, padding included.",
    ["device"],  # its number
    registry=REGISTRY,
)
POOL_BUSY_SECONDS = Counter(
    "fletcher_pool_busy_seconds", "Time that a device of several had batches for.", ["device"], registry=REGISTRY
)
POOL_CHANGES = Counter(
    "fletcher_pool_changes",
    "Devices that left the engine of several devices, or came back to it.",
    ["device", "cause"],  # lost, refused or recovered
    registry=REGISTRY,
)
POOL_IN_FLIGHT = Asked(
    GaugeMetricFamily, "fletcher_pool_batches", "Batches that a device of several has.", "device", registry=REGISTRY
)
POOL_MEMORY = Asked(
    GaugeMetricFamily,
    "fletcher_pool_memory_bytes",
    "Memory that a device of several needs: active of a GPU; resident, of its process, on a CPU.",
    "device",
    registry=REGISTRY,
)
BREAKER_STATE = Asked(
    GaugeMetricFamily,
    "fletcher_breaker_state",
    "Circuit breaker of a Longbow server: 0 closed, 1 half-open, 2 open.",
    "server",
    registry=REGISTRY,
)
LONGBOW_BYTES = Counter(
    "fletcher_longbow_bytes", "Arrow bytes exchanged with Longbow.", ["direction"], registry=REGISTRY
)  # sent or received
PANICS = Counter(
    "fletcher_panics",
    "Ends that nobody planned: of an engine's process, or of a thread by an error that is not Fletcher's.",
    ["where"],  # engine, batcher, http or flight
    registry=REGISTRY,
)

# Rates see the first event of a series only where it was 0 before.
for _reason in ("overload", "deadline", "draining", "too_large", "unauthorized", "disconnected"):
    REJECTED.labels(_reason)
for _where in ("engine", "batcher", "http", "flight"):
    PANICS.labels(_where)
for _direction in ("sent", "received"):
    LONGBOW_BYTES.labels(_direction)

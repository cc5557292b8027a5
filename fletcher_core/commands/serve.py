"""`fletcher serve`: options in, a service that embeds over HTTP and Flight until it is told to end."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fletcher_core.commands import options
from fletcher_core.commands.options import LongbowOptions, in_own_options
from fletcher_core.errors import ConfigError

if TYPE_CHECKING:
    from fletcher_core.embedder import Embedder
    from fletcher_core.service.run import Addresses

_LOG = logging.getLogger(__name__)
_KEY = "FLETCHER_API_KEY"
_SETTINGS = {
    "tls_certificate": "--tls-cert",
    "tls_key": "--tls-key",
    "flight_port": "--flight-port",
    "api_keys": "--api-key-file",
    "max_queue_tokens": "--max-queue-tokens",
    "request_timeout": "--request-timeout",
    "drain_timeout": "--drain-timeout",
}
"""What the command calls the service's settings: of a Longbow's it calls those of the same name otherwise."""


def serve(
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of HTTP; 0 takes a free one.")] = 8080,
    flight_port: Annotated[
        int | None, typer.Option("--flight-port", min=0, max=65535, help="Of Arrow Flight.", show_default="no Flight")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    max_length: options.MaxLength = None,
    dimension: options.Dimension = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Vectors of unit length.", show_default="as the model says"),
    ] = None,
    prompt: options.Prompt = None,
    long_text: options.LongText = "truncate",
    threads: options.Threads = None,
    devices: options.Devices = None,
    window_ms: Annotated[
        float,
        typer.Option("--window-ms", min=0, max=1000, help="How long a request waits for others to share a batch with."),
    ] = 2.0,
    max_queue_tokens: Annotated[
        int, typer.Option("--max-queue-tokens", min=1, help="When more wait, requests are turned away.")
    ] = 1 << 20,
    cache_bytes: Annotated[
        int, typer.Option("--cache-bytes", min=0, help="Memory for vectors of texts embedded before; 0 for none.")
    ] = 0,
    alias: Annotated[
        list[str] | None,
        typer.Option("--alias", help="Another name that requests may call the model by.", show_default=False),
    ] = None,
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", metavar="SECONDS", help="The longest a request may take.")
    ] = 30.0,
    drain_timeout: Annotated[
        float, typer.Option("--drain-timeout", metavar="SECONDS", help="For requests in hand when it is told to end.")
    ] = 30.0,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", help=f"File with the key that callers need; or set ${_KEY}.", show_default=False
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="PEM file of the certificate.", show_default=False)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file of its key.", show_default=False)] = None,
    layer_sample: Annotated[
        int, typer.Option("--layer-sample", min=0, metavar="N", help="Time the layers of one batch in N; 0 of none.")
    ] = 0,
    log_format: Annotated[
        Literal["auto", "pretty", "json"],
        typer.Option("--log-format", help="auto is pretty on a terminal."),
    ] = "auto",
    metrics: Annotated[bool, typer.Option("--metrics/--no-metrics", help="Show /metrics.")] = True,
    longbow: Annotated[
        str,
        typer.Option(
            "--longbow", metavar="HOST:PORT", help="Where DoPut of Arrow Flight forwards to.", show_default="none"
        ),
    ] = "",
    longbow_meta: options.LongbowMeta = "",
    longbow_ca: options.LongbowCa = "",
    longbow_cert: options.LongbowCert = "",
    longbow_key: options.LongbowKey = "",
    longbow_server_name: options.LongbowServerName = "",
    as_json: options.Json = False,
) -> int:
    """Embed over HTTP and Arrow Flight.

    A first SIGTERM or Ctrl-C lets requests in hand end; a second one ends it at once.
    """
    from fletcher_core.cache import VectorCache
    from fletcher_core.embedder import Embedder
    from fletcher_core.longbow.client import LongbowSettings
    from fletcher_core.longbow.credentials import read_key_pair
    from fletcher_core.service.run import NICENESS
    from fletcher_core.service.run import serve as serve_until_told
    from fletcher_core.service.settings import BatcherSettings, ServiceSettings
    from fletcher_core.telemetry.logs import start_logging
    from fletcher_core.telemetry.tracing import start_tracing

    start_logging("json" if as_json else log_format)
    end_tracing = start_tracing("fletcher")
    said = LongbowOptions(longbow, longbow_meta, longbow_ca, longbow_cert, longbow_key, longbow_server_name)
    longbow_settings = LongbowSettings(longbow, longbow_meta, credentials=said.credentials()) if longbow else None
    try:
        batching = BatcherSettings(
            window_seconds=window_ms / 1000, max_queue_tokens=max_queue_tokens, request_timeout=request_timeout
        )
        key = _api_key(api_key_file)
        settings = ServiceSettings(
            host=host,
            port=port,
            flight_port=flight_port,
            api_keys=(key,) if key else (),
            model_aliases=tuple(alias or ()),
            tls_certificate=tls_cert,
            tls_key=tls_key,
            batching=batching,
            drain_timeout=drain_timeout,
            longbow=longbow_settings,
            metrics=metrics,
        )
        if tls_cert is not None and tls_key is not None:
            read_key_pair(tls_cert, tls_key, "--tls-cert", "--tls-key")
    except ConfigError as error:
        raise ConfigError(in_own_options(str(error), _SETTINGS)) from error
    embedder = Embedder.load(
        model,
        engine=engine,
        precision=precision,
        max_length=max_length,
        dimension=dimension,
        normalize=normalize,
        prompt=prompt,
        long_text=long_text,
        threads=threads,
        devices=options.devices_of(devices),
        cache=VectorCache(cache_bytes) if cache_bytes else None,
        layer_sample=layer_sample,
        niceness=NICENESS,
    )
    try:
        serve_until_told(embedder, settings, started=lambda at: _announce(at, embedder))
    finally:
        end_tracing()
    return 0


def _announce(at: "Addresses", embedder: "Embedder") -> None:
    engine = embedder.engine
    _LOG.info(
        "serving %s (%d elements, %s in %s on %s) at %s%s",
        *(embedder.card.name, embedder.dimension, engine.name, engine.precision, engine.device),
        *(at.http, f" and {at.flight}" if at.flight else ""),
    )


def _api_key(file: Path | None) -> str:
    """The key that callers need, '' for none; never by an option, as everybody can read a command line (`ps`)."""
    if file is None:
        return os.environ.get(_KEY, "")
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {str(file)!r} cannot be read: {error}") from error
    if not key:
        raise ConfigError(f"--api-key-file {str(file)!r} is empty: write the key into it")
    return key

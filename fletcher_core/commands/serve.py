"""`fletcher serve`: options in, a service that embeds over HTTP and Flight until it is told to end."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from fletcher_core.commands import options
from fletcher_core.commands.options import LongbowOptions
from fletcher_core.errors import ConfigError

_KEY = "FLETCHER_API_KEY"


def serve(
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Of HTTP.")] = 8080,
    flight_port: Annotated[
        int | None, typer.Option("--flight-port", help="Of Arrow Flight.", show_default="no Flight")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    max_length: options.MaxLength = None,
    dimension: options.Dimension = None,
    prompt: options.Prompt = None,
    long_text: options.LongText = "truncate",
    threads: options.Threads = None,
    window_ms: Annotated[
        float, typer.Option("--window-ms", help="How long a request waits for others to share a batch with.")
    ] = 2.0,
    max_queue_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-queue-tokens", help="Beyond these, requests are turned away.", show_default="the service's"
        ),
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
        int, typer.Option("--layer-sample", metavar="N", help="Time the layers of one batch in N; 0 of none.")
    ] = 0,
    log_format: Annotated[Literal["pretty", "json"], typer.Option("--log-format", help="Of the log.")] = "pretty",
    metrics: Annotated[bool, typer.Option("--metrics/--no-metrics", help="Show /metrics.")] = True,
    longbow: Annotated[
        str, typer.Option("--longbow", metavar="HOST:PORT", help="A Longbow to watch.", show_default="none")
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
    from fletcher_core.service import run
    from fletcher_core.service.settings import ServiceSettings

    said = LongbowOptions(longbow, longbow_meta, longbow_ca, longbow_cert, longbow_key, longbow_server_name)
    settings = ServiceSettings(
        host=host,
        port=port,
        flight_port=flight_port,
        model=model,
        engine=engine,
        precision=precision,
        max_length=max_length,
        dimension=dimension,
        prompt=prompt,
        long_text=long_text,
        threads=threads,
        window_ms=window_ms,
        max_queue_tokens=max_queue_tokens,
        request_timeout=request_timeout,
        drain_timeout=drain_timeout,
        api_key=_api_key(api_key_file),
        tls_cert=tls_cert,
        tls_key=tls_key,
        layer_sample=layer_sample,
        log_format="json" if as_json else log_format,
        metrics=metrics,
        longbow=said.data,
        longbow_meta=said.meta,
        longbow_credentials=said.credentials(),
    )
    return int(run.serve(settings) or 0)


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

"""Settings of the resources that cannot work are refused when definitions load, not in the run.

In come the values of a resource's fields; out goes nothing or a ConfigError that names the setting. What an `EnvVar`
gives is not known before the run: a resource is made anew there from the values themselves, and checked again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import dagster as dg

from fletcher_core.errors import ConfigError
from fletcher_core.setting_values import (
    Compression,
    EngineChoice,
    Isolation,
    LongText,
    OnDuplicate,
    OnEmpty,
    Precision,
    Transport,
    VectorType,
    check_at_least,
    check_choice,
    check_devices,
    check_engine,
    check_whole,
)

AssetEngine = Literal["auto", "mlx", "cpu", "native", "openvino", "ray"]
"""What computes an asset's vectors: an engine of the run's own machine, or those of a Ray cluster."""

CHOICES: Mapping[str, Any] = {
    "engine": AssetEngine,
    "worker_engine": EngineChoice,
    "precision": Precision,
    "isolation": Isolation,
    "long_text": LongText,
    "vector_type": VectorType,
    "on_empty": OnEmpty,
    "on_duplicate": OnDuplicate,
    "transport": Transport,
    "compression": Compression,
}
"""The settings of the two resources that are one of a few words."""

_COUNTS = ("max_length", "dimension", "threads", "max_rows_per_run")
_AT_LEAST_0 = ("chunk_overlap", "cache_bytes", "commit_seconds", "min_free_bytes", "delivery_timeout")
_CLIENT = ("call_timeout", "put_timeout", "read_timeout", "transport", "compression")
CREDENTIALS = (
    *("tls_ca", "tls_certificate", "tls_key", "tls_server_name"),
    *("token", "token_file", "token_env", "token_header", "allow_plaintext_token"),
)


class SettingError(ConfigError, dg.DagsterUserCodeExecutionError):
    """A ConfigError that Dagster shows as it is: when a run sets up its resources, Dagster hides any other one behind
    "Error executing resource_fn on ResourceDefinition". By being of this kind it is still an error of the user's."""

    def __init__(self, error: ConfigError) -> None:
        told = {"user_exception": error, "original_exc_info": (type(error), error, error.__traceback__)}
        super().__init__(str(error), **told)  # type: ignore[no-untyped-call]


@contextmanager
def shown_by_dagster() -> Iterator[None]:
    """A ConfigError of the block leaves it as a SettingError."""
    try:
        yield
    except ConfigError as error:
        raise SettingError(error) from None


def known_now(value: object) -> bool:
    """False for an `EnvVar`: those are subclasses of str and int, and must not be read before the run."""
    return type(value) in (str, int, float, bool, type(None))


def check_embedding(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises ConfigError for what `FletcherResource` cannot be set to; `values` and `defaults` by field."""
    known = {name: value for name, value in values.items() if known_now(value)}
    for name in CHOICES.keys() & known.keys():
        check_choice(name, known[name], CHOICES[name])
    check_engine(_engine(values), known.get("precision", "auto"))
    check_devices(known.get("devices"), _engine(values), known.get("isolation", "auto"))
    for name in _COUNTS:
        if known.get(name) is not None:
            check_whole(name, known[name], 1)
    _check_at_least_0(known)
    limit = known.get("quarantine_limit")
    if limit is not None and not 0 <= limit <= 1:
        raise ConfigError(f"quarantine_limit is {limit}; it is a share of the rows, from 0 to 1")
    dashboard = known.get("dashboard_url")
    if dashboard and not str(dashboard).startswith(("http://", "https://")):
        raise ConfigError(f"dashboard_url is {dashboard!r}: give an address that begins with http:// or https://")
    # These two load what a default does not need.
    if known.get("metrics"):
        from fletcher_core.telemetry.push import check_target

        check_target(known["metrics"])
    if known.get("memory_limit", defaults["memory_limit"]) != defaults["memory_limit"]:
        from fletcher_core.sql import connect

        connect(memory_limit=known["memory_limit"]).close()


def _engine(values: Mapping[str, Any]) -> str:
    """Which engine computes in the end, as far as it is known now."""
    engine, ray = values.get("engine", "auto"), values.get("ray")
    if ray is not None and known_now(engine) and engine != "ray":
        raise ConfigError(f"ray is set, but engine is {engine!r}: set engine='ray', or leave ray out")
    if engine == "ray":
        engine = "auto" if ray is None else ray.worker_engine
    return str(engine) if known_now(engine) else "auto"


def check_delivery(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises ConfigError for what `LongbowResource` cannot be set to; `values` and `defaults` by field."""
    if values["meta_address"] and not values["data_address"]:
        raise ConfigError(
            f"Longbow meta_address is {values['meta_address']!r} but data_address is empty: set both, or neither for "
            "the embedded server"
        )
    given = [name for name in CREDENTIALS if values[name] != defaults[name]]
    if given and not values["data_address"]:
        raise ConfigError(
            f"Longbow {', '.join(given)}: set, but data_address is empty: set it, too, or leave these out for the "
            "embedded server, which has a token of its own"
        )
    known = {name: value for name, value in values.items() if known_now(value)}
    _check_at_least_0(known)
    if all(known.get(name, default) == default for name, default in defaults.items()):
        return
    # Loads what delivers, which default settings need not wait for.
    from fletcher_core.longbow.client import LongbowSettings
    from fletcher_core.longbow.credentials import Credentials

    settings = {name: known[name] for name in _CLIENT if name in known}
    credentials = Credentials(**{name: known[name] for name in CREDENTIALS if name in known})
    if known.get("data_address") and "meta_address" in known:
        LongbowSettings(known["data_address"], known["meta_address"], **settings, credentials=credentials)
    else:
        LongbowSettings(**settings)


def _check_at_least_0(known: Mapping[str, Any]) -> None:
    for name in _AT_LEAST_0:
        if name in known:
            check_at_least(name, known[name], 0)

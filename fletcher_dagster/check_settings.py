"""Which checks an embedding asset has, how much each of them matters, and where its limits are.

In comes what the user wants; out goes the part of it that each check's spec carries as JSON, and the settings read back
from such specs in the run.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

import dagster as dg

from fletcher_core.errors import ConfigError

Level = Literal["error", "warn", "off"]
SETTINGS_KEY = "fletcher/settings"

CHECKS = (
    *("row_parity", "quarantine", "no_nan", "dimension", "duplicates"),
    *("unit_norm", "drift", "delivery_lag", "recall_probe"),
)
"""Names of all checks, which are names of settings, too."""


@dataclass(frozen=True)
class FletcherChecks:
    """What to check of the assets of `fletcher_assets(checks=...)`.

    Each check is "error" (a failure holds up what is downstream in the run), "warn" (it is only shown) or "off" (the
    asset does not have it). `quarantine` is an error, too, above the resource's `quarantine_limit`.

    Attributes:
        row_parity: the store holds one vector for each embeddable row of the source.
        quarantine: no row was set aside as impossible to embed.
        no_nan: no vector has NaN or infinite elements.
        dimension: every vector has as many elements as the model gives.
        duplicates: no id is twice in a partition.
        unit_norm: every vector has length 1; "off" for a model that does not normalize.
        drift: mean vector and mean norm moved little since the last run.
        delivery_lag: what is in the store is searchable in Longbow, or has not been waiting for long.
        recall_probe: rows searched in Longbow by their own vectors find themselves.
        sample_rows: of a partition with more rows, so many are looked at by no_nan, dimension, unit_norm and drift;
            None: all of them, always.
        norm_tolerance: how far from 1 a length may be; None: 0.0001 for float32, 0.002 for float16.
        drift_distance: largest 1 - cosine of this run's and the last run's mean vector, 0 to 2.
        drift_norm: largest change of the mean norm, as a share of it.
        drift_min_rows: partitions with fewer rows are not compared: their means move by chance.
        lag_seconds: how long a row may wait until it is searchable.
        lag_rows: how many may wait; None: any number, for `lag_seconds`.
        recall_rows: how many rows to search for, over all partitions of the run.
        recall_k: among how many nearest rows each must find itself.
        recall_share: share of them that must, 0 to 1.

    Raises:
        ConfigError: a setting has a value that cannot work.
    """

    row_parity: Level = "error"
    quarantine: Level = "warn"
    no_nan: Level = "error"
    dimension: Level = "error"
    duplicates: Level = "error"
    unit_norm: Level = "warn"
    drift: Level = "warn"
    delivery_lag: Level = "warn"
    recall_probe: Level = "warn"
    sample_rows: int | None = 1_000_000
    norm_tolerance: float | None = None
    drift_distance: float = 0.05
    drift_norm: float = 0.05
    drift_min_rows: int = 1000
    lag_seconds: float = 3600.0
    lag_rows: int | None = None
    recall_rows: int = 20
    recall_k: int = 10
    recall_share: float = 0.95

    def __post_init__(self) -> None:
        for name in CHECKS:
            if self.level(name) not in ("error", "warn", "off"):
                raise ConfigError(f"check {name} is {self.level(name)!r}: set it to 'error', 'warn' or 'off'")
        for name in ("sample_rows", "drift_min_rows", "recall_rows", "recall_k"):
            self._require(name, lowest=1, whole=True)
        self._require("lag_rows", lowest=0, whole=True)
        for name, highest in (("drift_distance", 2.0), ("recall_share", 1.0), ("norm_tolerance", math.inf)):
            self._require(name, lowest=0, highest=highest)
        for name in ("drift_norm", "lag_seconds"):
            self._require(name, lowest=0)

    def level(self, name: str) -> Level:
        """Of the check `name`."""
        return getattr(self, name)

    def _require(self, name: str, lowest: float, highest: float = math.inf, *, whole: bool = False) -> None:
        value = getattr(self, name)
        if value is None and name in ("sample_rows", "norm_tolerance", "lag_rows"):
            return
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not lowest <= value <= highest:
            bounds = f"{lowest} or more" if highest == math.inf else f"from {lowest} to {highest}"
            raise ConfigError(f"{name} of the checks is {value!r}: it must be a{' whole' * whole} number, {bounds}")


_LIMITS: dict[str, tuple[str, ...]] = {
    "no_nan": ("sample_rows",),
    "dimension": ("sample_rows",),
    "unit_norm": ("sample_rows", "norm_tolerance"),
    "drift": ("sample_rows", "drift_distance", "drift_norm", "drift_min_rows"),
    "delivery_lag": ("lag_seconds", "lag_rows"),
    "recall_probe": ("recall_rows", "recall_k", "recall_share"),
}


def settings_metadata(checks: FletcherChecks, name: str) -> dict[str, dg.JsonMetadataValue]:
    """The metadata entry of one check's spec: what decides its result."""
    return {SETTINGS_KEY: dg.MetadataValue.json({key: getattr(checks, key) for key in (name, *_LIMITS.get(name, ()))})}


def declared_checks(specs: Iterable[dg.AssetCheckSpec]) -> FletcherChecks:
    """The settings that the specs of one asset's checks carry; defaults for checks that are not among them.

    Raises:
        ConfigError: a spec was changed to carry something else.
    """
    known = {field.name for field in fields(FletcherChecks)}
    found: dict[str, Any] = {}
    for spec in specs:
        entry = spec.metadata.get(SETTINGS_KEY)
        data = entry.data if isinstance(entry, dg.JsonMetadataValue) else None
        if isinstance(data, dict):
            found.update({str(key): value for key, value in data.items() if key in known})
    return FletcherChecks(**found)

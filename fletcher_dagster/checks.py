"""The checks of an embedding asset: their specs, and what figures of its partitions mean for each.

In come settings, or figures of the partitions that a run looked at; out go `AssetCheckSpec`s, or findings that become
`AssetCheckResult`s. Nothing is read here: `check_run` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from fletcher_core.errors import ConfigError
from fletcher_dagster.check_settings import CHECKS, FletcherChecks, settings_metadata
from fletcher_dagster.metadata import quarantined_metadata

if TYPE_CHECKING:  # they load the store and Flight
    from fletcher_core.longbow.lag import DeliveryLag
    from fletcher_core.recall import RecallProbe
    from fletcher_core.store.health import Fault, VectorHealth
    from fletcher_core.store.statistics import Drift

_SHOWN = 20  # partitions at fault in a check's metadata
_EXAMPLES = 5  # ids of rows at fault

_DESCRIPTIONS = {
    "row_parity": "The vector store holds exactly one vector for every embeddable row of the source.",
    "quarantine": "No row was set aside as impossible to embed. All of them, with reasons, are in the quarantine "
    "folder of the vector store. Fails, and holds up what is downstream, where more than the resource's "
    "quarantine_limit were.",
    "no_nan": "No stored vector has a NaN or an infinite element.",
    "dimension": "Every stored vector has as many elements as the model gives.",
    "duplicates": "No id has two current vectors in one partition.",
    "unit_norm": "Every stored vector has length 1. Switch it off for a model that does not normalize.",
    "drift": "Mean vector and mean norm of each partition are about what they were in the last run with this model.",
    "delivery_lag": "No row has been waiting for Longbow for longer than the limit.",
    "recall_probe": "Rows searched in Longbow by their own vectors find themselves.",
}


@dataclass(frozen=True)
class Tally:
    """What the checks need to know of a partition.

    `live` rows are in the store. `embeddable` rows of the source have an id of their own and a text, and were not
    refused by the engine. `quarantined` are the rows set aside: id, reason, message. `generation` is the name of the
    one that holds them; empty: the one written last.
    """

    partition_key: str
    live: int
    embeddable: int
    quarantined: pa.Table
    generation: str = ""


@dataclass(frozen=True)
class Finding:
    """What a check found, in words and figures. `severity` counts in place of the settings' where it is given."""

    passed: bool
    words: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    severity: dg.AssetCheckSeverity | None = None


def check_specs(asset_key: dg.AssetKey, checks: FletcherChecks | None = None) -> list[dg.AssetCheckSpec]:
    """Specs of the checks that are not off."""
    checks = checks or FletcherChecks()
    return [
        dg.AssetCheckSpec(
            name,
            asset=asset_key,
            description=_DESCRIPTIONS[name],
            # Only a failure of severity ERROR holds anything up. The quarantine's has it over the resource's limit.
            blocking=checks.level(name) == "error" or name == "quarantine",
            metadata=settings_metadata(checks, name),
        )
        for name in CHECKS
        if checks.level(name) != "off"
    ]


def check_result(asset_key: dg.AssetKey, name: str, checks: FletcherChecks, found: Finding) -> dg.AssetCheckResult:
    """The finding as Dagster's result, with the severity that the settings say."""
    declared = dg.AssetCheckSeverity.ERROR if checks.level(name) == "error" else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=name,
        passed=found.passed,
        severity=found.severity or declared,
        description=found.words,
        metadata=found.metadata,
    )


def row_parity(tallies: Sequence[Tally], left_over: Sequence[str] = ()) -> Finding:
    """`left_over` are partitions in the store that no run will ever look at again."""
    unequal = {
        tally.partition_key: {"rows_in_store": tally.live, "rows_to_embed": tally.embeddable}
        for tally in tallies
        if tally.live != tally.embeddable
    }
    live, embeddable = sum(tally.live for tally in tallies), sum(tally.embeddable for tally in tallies)
    words = f"{live:,} rows in the store, {embeddable:,} to embed in the source"
    if left_over:
        words += (
            f"; beside them the store holds {len(left_over):,} partitions of another number of hash buckets, such as "
            f"{left_over[0]!r}, whose rows are searched and loaded, too: take them out by `fletcher drop --partition`"
        )
    return Finding(
        not unequal and not left_over,
        words,
        {
            "fletcher/rows_live": live,
            "fletcher/rows_embeddable": embeddable,
            **({"fletcher/left_over": ", ".join(left_over[:_SHOWN])} if left_over else {}),
            **_partitions(unequal),
        },
    )


def quarantine(tallies: Sequence[Tally], limit: float | None) -> Finding:
    """`limit` is the share of the rows, 0 to 1, above which it is an error; None: as the settings say.

    Raises:
        ConfigError: the limit is no share.
    """
    if limit is not None and not 0 <= limit <= 1:
        raise ConfigError(f"quarantine_limit is {limit}: it is a share of the rows, from 0 to 1")
    quarantined = [tally for tally in tallies if tally.quarantined.num_rows]
    rows = sum(tally.quarantined.num_rows for tally in tallies)
    share = rows / max(rows + sum(tally.embeddable for tally in tallies), 1)
    return Finding(
        not quarantined,
        f"{rows:,} rows set aside" if rows else "no row was set aside",
        {
            "fletcher/rows_quarantined": rows,
            "fletcher/quarantined_share": round(share, 6),
            **_partitions({tally.partition_key: {"rows": tally.quarantined.num_rows} for tally in quarantined}),
            **quarantined_metadata([tally.quarantined for tally in quarantined]),
        },
        dg.AssetCheckSeverity.ERROR if limit is not None and share > limit else None,
    )


def no_nan(healths: Sequence[VectorHealth]) -> Finding:
    return _faults(healths, "with a NaN or infinite element", lambda health: health.not_finite)


def dimension(healths: Sequence[VectorHealth]) -> Finding:
    return _faults(healths, "of another dimension than the model's", lambda health: health.wrong_dimension)


def unit_norm(healths: Sequence[VectorHealth], normalize: bool | None) -> Finding:
    """`normalize` is the resource's setting: False asks for vectors that are not of length 1."""
    if normalize is False:
        return Finding(True, "not looked at: the resource's normalize is False")
    found = _faults(healths, "whose length is not 1", lambda health: health.off_unit)
    sound = [health for health in healths if health.sound]
    norms = {
        "fletcher/norm_min": min((health.norm_min for health in sound), default=None),
        "fletcher/norm_mean": sum(health.norm_mean * health.sound for health in sound)
        / max(sum(health.sound for health in sound), 1),
        "fletcher/norm_max": max((health.norm_max for health in sound), default=None),
    }
    return Finding(found.passed, found.words, {**found.metadata, **(norms if sound else {})})


def duplicates(faults: Mapping[str, Fault]) -> Finding:
    """`faults` are those of each partition."""
    rows = sum(fault.rows for fault in faults.values())
    return Finding(
        not rows,
        f"{rows:,} rows have an id that another row has" if rows else "every id is there once",
        {
            "fletcher/rows_duplicate": rows,
            **_examples(row_id for fault in faults.values() for row_id in fault.ids),
            **_partitions({key: {"rows": fault.rows} for key, fault in faults.items() if fault.rows}),
        },
    )


def drift(healths: Sequence[VectorHealth], drifts: Mapping[str, Drift | None], checks: FletcherChecks) -> Finding:
    """`drifts` has of each partition how far it moved, None without an earlier run."""
    compared = {
        key: moved for key, moved in drifts.items() if moved is not None and moved.rows >= checks.drift_min_rows
    }
    if not compared:
        small = any(moved is not None for moved in drifts.values())
        few = f"not compared: fewer than {checks.drift_min_rows:,} rows (drift_min_rows)"
        return Finding(True, few if small else "no earlier run to compare with", _looked_at(healths))
    moved = {
        key: {"rows": found.rows, "distance": found.distance, "norm_change": found.norm_change}
        for key, found in compared.items()
        if found.distance > checks.drift_distance or found.norm_change > checks.drift_norm
    }
    distance = max(found.distance for found in compared.values())
    change = max(found.norm_change for found in compared.values())
    return Finding(
        not moved,
        f"{len(compared):,} partitions compared: the mean vector moved by {distance:.3g} (1 - cosine), its norm's mean "
        f"by {change:.2%}, at most"
        if len(drifts) > 1
        else f"the mean vector moved by {distance:.3g} (1 - cosine), the mean norm by {change:.2%}",
        {
            "fletcher/drift_distance": distance,
            "fletcher/drift_norm": change,
            "fletcher/partitions_compared": len(compared),
            "fletcher/compared_with": sorted({found.since for found in compared.values()})[-1],
            **_looked_at(healths),
            **_partitions(moved),
        },
    )


def lag(found: DeliveryLag, checks: FletcherChecks) -> Finding:
    waiting = found.pending + found.applied
    age = found.oldest or 0.0
    late = waiting > 0 and age > checks.lag_seconds
    many = checks.lag_rows is not None and waiting > checks.lag_rows
    return Finding(
        not (late or many),
        f"{waiting:,} rows wait to be searchable, the oldest for {age:,.0f} s"
        if waiting
        else "all rows are searchable",
        {
            "fletcher/longbow_rows_pending": found.pending,
            "fletcher/longbow_rows_unindexed": found.applied,
            "fletcher/longbow_rows_searchable": found.searchable,
            "fletcher/oldest_waiting_seconds": round(age, 3),
            **(_partitions({key: {"rows": rows} for key, rows in found.partitions.items()}) if late or many else {}),
        },
    )


def recall(probe: RecallProbe, checks: FletcherChecks) -> Finding:
    if not probe.probed:
        return Finding(True, "no row is searchable yet: see delivery_lag", {"fletcher/rows_probed": 0})
    share = probe.found / probe.probed
    words = f"{probe.found} of {probe.probed} rows found themselves among the nearest {checks.recall_k}"
    return Finding(
        share >= checks.recall_share,
        f"{words}: {probe.problem}" if probe.problem else words,
        {
            "fletcher/rows_probed": probe.probed,
            "fletcher/rows_found": probe.found,
            "fletcher/recall": round(share, 6),
            **_examples(probe.missed),
        },
    )


def _faults(healths: Sequence[VectorHealth], what: str, fault_of: Callable[[VectorHealth], Fault]) -> Finding:
    rows = sum(fault_of(health).rows for health in healths)
    return Finding(
        not rows,
        f"{rows:,} vectors {what}" if rows else f"no vector {what}",
        {
            "fletcher/rows_at_fault": rows,
            **_looked_at(healths),
            **_examples(row_id for health in healths for row_id in fault_of(health).ids),
            **_partitions(
                {health.partition_key: {"rows": fault_of(health).rows} for health in healths if fault_of(health).rows}
            ),
        },
    )


def _looked_at(healths: Sequence[VectorHealth]) -> dict[str, Any]:
    return {
        "fletcher/rows_looked_at": sum(health.rows for health in healths),
        "fletcher/is_sample": any(health.is_sample for health in healths),
    }


def _examples(ids: Iterable[str]) -> dict[str, Any]:
    first = list(itertools.islice(ids, _EXAMPLES))
    return {"fletcher/examples": dg.MetadataValue.json(first)} if first else {}


def _partitions(figures: Mapping[str, Mapping[str, int | float]]) -> dict[str, dg.TableMetadataValue | int]:
    """Which partitions have the trouble: how many, and a table of the first of them with their figures."""
    named = {key: of_one for key, of_one in figures.items() if key}
    if not named:
        return {}
    records = [dg.TableRecord({"partition": key, **of_one}) for key, of_one in itertools.islice(named.items(), _SHOWN)]
    return {"fletcher/partitions_at_fault": len(named), "fletcher/partitions": dg.MetadataValue.table(records)}

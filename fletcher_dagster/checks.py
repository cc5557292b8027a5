"""The two checks that every embedding asset carries.

In come tallies of the partitions that a run looked at; out go `AssetCheckResult`s: `quarantine` warns when rows
were set aside and fails when too many were, `row_parity` fails when the store does not hold exactly the embeddable
rows of the source.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg
import pyarrow as pa

from fletcher_core.errors import ConfigError

QUARANTINE = "quarantine"
ROW_PARITY = "row_parity"

_SHOWN = 20  # quarantined rows in a check's metadata; all of them are in the store


@dataclass(frozen=True)
class Tally:
    """What the checks need to know of a partition.

    `live` rows are in the store. `embeddable` rows of the source have an id of their own and a text, and were not
    refused by the engine. `quarantined` are the rows set aside: id, reason, message.
    """

    partition_key: str
    live: int
    embeddable: int
    quarantined: pa.Table


def check_specs(asset_key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            QUARANTINE,
            asset=asset_key,
            description="No row was set aside as impossible to embed. All of them, with reasons, are in the "
            "quarantine folder of the vector store. Fails, and holds up what is downstream, where more than the "
            "resource's quarantine_limit were.",
            blocking=True,  # only a result of severity ERROR does
        ),
        dg.AssetCheckSpec(
            ROW_PARITY,
            asset=asset_key,
            description="The vector store holds exactly one vector for every embeddable row of the source.",
        ),
    ]


def check_results(
    asset_key: dg.AssetKey, tallies: Sequence[Tally], quarantine_limit: float | None = None
) -> Iterator[dg.AssetCheckResult]:
    """One result for each check, over all partitions that were looked at.

    Args:
        quarantine_limit: share of the rows, 0 to 1, above which a quarantine is an error; None: never.
    """
    if quarantine_limit is not None and not 0 <= quarantine_limit <= 1:
        raise ConfigError(f"quarantine_limit is {quarantine_limit}: it is a share of the rows, from 0 to 1")
    quarantined = [tally for tally in tallies if tally.quarantined.num_rows]
    rows = sum(tally.quarantined.num_rows for tally in tallies)
    share = rows / max(rows + sum(tally.embeddable for tally in tallies), 1)
    over = quarantine_limit is not None and share > quarantine_limit
    yield dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=QUARANTINE,
        passed=not quarantined,
        severity=dg.AssetCheckSeverity.ERROR if over else dg.AssetCheckSeverity.WARN,
        metadata={
            "fletcher/rows_quarantined": rows,
            "fletcher/quarantined_share": round(share, 6),
            **_partitions(quarantined),
            **_rows(quarantined),
        },
    )
    unequal = [tally for tally in tallies if tally.live != tally.embeddable]
    yield dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=ROW_PARITY,
        passed=not unequal,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "fletcher/rows_live": sum(tally.live for tally in tallies),
            "fletcher/rows_embeddable": sum(tally.embeddable for tally in tallies),
            **_partitions(unequal),
        },
    )


def _partitions(tallies: Sequence[Tally]) -> dict[str, dg.JsonMetadataValue]:
    """Which partitions have the trouble."""
    keys = [tally.partition_key for tally in tallies if tally.partition_key]
    return {"fletcher/partitions": dg.MetadataValue.json(keys)} if keys else {}


def _rows(tallies: Sequence[Tally]) -> dict[str, dg.TableMetadataValue]:
    """The first quarantined rows as a table."""
    rows = [row for tally in tallies for row in tally.quarantined.slice(0, _SHOWN).to_pylist()][:_SHOWN]
    names = ("id", "reason", "message")
    records = [dg.TableRecord({name: str(row[name]) for name in names}) for row in rows]
    return {"fletcher/quarantined": dg.MetadataValue.table(records)} if records else {}

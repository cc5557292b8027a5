"""The checks of an embedding asset, in the run that materialized it or alone.

In come the context and, after a materialization, a tally of each partition; out goes a result of every selected check,
also when it cannot be evaluated: to Dagster a check without a result holds nothing up. Alone, source and store are
compared as they are now, without changing either.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from fletcher_core.changes import detect_changes
from fletcher_core.errors import FletcherError, LongbowUnavailable, StoreError
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.lag import delivery_lag
from fletcher_core.recall import probe_recall
from fletcher_core.sources import Partition
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store.health import Fault, VectorHealth, duplicate_ids, vector_health
from fletcher_core.store.statistics import Drift, record_statistics
from fletcher_dagster import checks
from fletcher_dagster.check_settings import CHECKS, FletcherChecks, declared_checks
from fletcher_dagster.checks import Finding, Tally, check_result
from fletcher_dagster.declaration import declared_source
from fletcher_dagster.failures import reported_in_words
from fletcher_dagster.partitions import HashPartitionsDefinition, slices_of

if TYPE_CHECKING:
    from fletcher_dagster.resources import FletcherResource


def check_asset(
    context: dg.AssetExecutionContext, fletcher: FletcherResource, spec: dg.AssetSpec
) -> Iterator[dg.AssetCheckResult]:
    """Compares source and store as they are now, without changing either."""
    yield from _results(context, fletcher, spec, None)


def tally_of(partition_key: str, live: int, present: int, quarantined: pa.Table, *, generation: str = "") -> Tally:
    """`present` rows have a text and an id of their own; those that the engine refused are not embeddable."""
    absent = pc.is_in(quarantined["reason"], pa.array(["duplicate_id", "invalid_text"]))
    refused = int(pc.sum(pc.invert(absent)).as_py() or 0)
    return Tally(partition_key, live, present - refused, quarantined, generation)


def selected_checks(
    context: dg.AssetExecutionContext, fletcher: FletcherResource, key: dg.AssetKey, tallies: Sequence[Tally]
) -> Iterator[dg.AssetCheckResult]:
    """The selected checks of an asset that this run has materialized, over the partitions of `tallies`."""
    yield from _results(context, fletcher, context.assets_def.specs_by_key[key], tallies)


def _results(
    context: dg.AssetExecutionContext, fletcher: FletcherResource, spec: dg.AssetSpec, tallies: Sequence[Tally] | None
) -> list[dg.AssetCheckResult]:
    selected = {check.name for check in context.selected_asset_check_keys if check.asset_key == spec.key}
    if not selected:
        return []
    settings = declared_checks(check for check in context.assets_def.check_specs if check.asset_key == spec.key)
    with reported_in_words(context, f"checking {spec.key.to_user_string()}"), ExitStack() as stack:
        evaluation = _Evaluation(context, fletcher, spec, settings, tallies, stack)
        return [check_result(spec.key, name, settings, evaluation.finding(name)) for name in CHECKS if name in selected]


class _Evaluation:
    """Figures of an asset's partitions, each read when a check first asks for it and then shared.

    `tallies` are given after a materialization; without, source and store are compared. What is opened is closed by
    `stack`.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        fletcher: FletcherResource,
        spec: dg.AssetSpec,
        settings: FletcherChecks,
        tallies: Sequence[Tally] | None,
        stack: ExitStack,
    ) -> None:
        self._context = context
        self._fletcher = fletcher
        self._spec = spec
        self._settings = settings
        self._given = tallies
        self._stack = stack
        self._run_id = context.run.run_id
        self._seed = int.from_bytes(hashlib.sha256(self._run_id.encode()).digest()[:4], "big")

    def finding(self, name: str) -> Finding:
        """What a check finds; a failure with its cause when it cannot be evaluated."""
        find: dict[str, Callable[[], Finding]] = {
            "row_parity": lambda: checks.row_parity(self._tallies, self._left_over()),
            "quarantine": lambda: checks.quarantine(self._tallies, self._fletcher.quarantine_limit),
            "no_nan": lambda: checks.no_nan(self._healths),
            "dimension": lambda: checks.dimension(self._healths),
            "duplicates": lambda: checks.duplicates(self._duplicates()),
            "unit_norm": lambda: checks.unit_norm(self._healths, self._fletcher.normalize),
            "drift": lambda: checks.drift(self._healths, self._drifts(), self._settings),
            "delivery_lag": self._lag,
            "recall_probe": self._recall,
        }
        try:
            return find[name]()
        except Exception as error:  # noqa: BLE001 - whatever it is: without a result the check would hold nothing up
            self._context.log.warning(f"check {name} of {self._spec.key.to_user_string()} failed: {error}")
            if not isinstance(error, FletcherError):
                self._context.log.debug("".join(traceback.format_exception(error)))
            kind = type(error).__name__
            # A server that is down says nothing about the vectors.
            severity = dg.AssetCheckSeverity.WARN if isinstance(error, LongbowUnavailable) else None
            words = f"the check could not be evaluated: {error or kind}"
            return Finding(False, words, {"fletcher/error": kind}, severity)

    @cached_property
    def _store(self) -> VectorStore:
        return self._stack.enter_context(self._fletcher.store(self._spec.key))

    @cached_property
    def _generation(self) -> Generation:
        named = next((tally.generation for tally in self._given or () if tally.generation), "")
        generation = self._store.named(named) if named else self._store.current()
        if generation is None:
            name = self._spec.key.to_user_string()
            raise StoreError(f"asset {name!r} has no vectors to check yet: materialize it first")
        return generation

    @cached_property
    def _slices(self) -> list[Partition]:
        """Those that the run is about; where it names none, those that have vectors."""
        source = declared_source(self._spec)
        return slices_of(self._context, self._spec, source, default=self._generation.partitions())

    @cached_property
    def _keys(self) -> list[str]:
        parts = self._slices if self._given is None else self._given
        return [part.key if isinstance(part, Partition) else part.partition_key for part in parts]

    @cached_property
    def _tallies(self) -> Sequence[Tally]:
        if self._given is not None:
            return self._given
        source, generation, tallies = declared_source(self._spec), self._generation, []
        with self._store.workspace(self._run_id) as folder:
            for partition in self._slices:
                changes = detect_changes(source, partition, generation, folder)
                present = changes.new + changes.changed + changes.stale + changes.unchanged
                quarantined = self._store.quarantine.read(partition.key)
                tallies.append(tally_of(partition.key, generation.row_count(partition.key), present, quarantined))
        return tallies

    def _left_over(self) -> list[str]:
        """Partitions of another number of hash buckets: what is in them is in one of this number, too, or is gone."""
        definition = self._spec.partitions_def
        if not isinstance(definition, HashPartitionsDefinition):
            return []
        known = set(definition.get_partition_keys())
        strange = [key for key in self._generation.partitions() if key not in known]
        return [key for key in strange if self._generation.row_count(key)]

    @cached_property
    def _healths(self) -> list[VectorHealth]:
        return [
            vector_health(
                self._generation,
                key,
                tolerance=self._settings.norm_tolerance,
                sample_rows=self._settings.sample_rows,
                seed=self._seed,
            )
            for key in self._keys
        ]

    def _duplicates(self) -> dict[str, Fault]:
        return duplicate_ids(self._generation, self._keys)

    def _drifts(self) -> dict[str, Drift | None]:
        return {
            health.partition_key: record_statistics(self._generation, health, self._run_id) for health in self._healths
        }

    @cached_property
    def _longbow(self) -> LongbowClient | None:
        client = self._fletcher.longbow_client()
        return client if client is None else self._stack.enter_context(client)

    def _lag(self) -> Finding:
        if self._longbow is None:
            return Finding(True, "Longbow is switched off")
        target = self._longbow.address.target
        return checks.lag(delivery_lag(self._generation, target, self._keys), self._settings)

    def _recall(self) -> Finding:
        if self._longbow is None:
            return Finding(True, "Longbow is switched off")
        probe = probe_recall(
            self._generation,
            self._longbow,
            self._keys,
            rows=self._settings.recall_rows,
            k=self._settings.recall_k,
            seed=self._seed,
        )
        return checks.recall(probe, self._settings)

"""From partitions that are to run to the run requests that cover them.

In come partition keys and the assets' backfill policy; out go run requests: contiguous keys in one run where the policy
lets one run take several, as a backfill in the UI would ask for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

_RANGE_START, _RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class KeyRange:
    """Neighbouring partition keys, in the order of the partitions definition; '' of an asset without partitions."""

    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """`first...last`, or the only key."""
        return self.keys[0] if len(self.keys) == 1 else f"{self.keys[0]}...{self.keys[-1]}"

    def request(
        self, run_key: str, tags: Mapping[str, str], asset_selection: Sequence[dg.AssetKey] | None
    ) -> dg.RunRequest:
        """The request of one run for all of the keys."""
        selection = None if asset_selection is None else list(asset_selection)
        if len(self.keys) == 1:
            return dg.RunRequest(run_key, tags=tags, partition_key=self.keys[0] or None, asset_selection=selection)
        ends = {_RANGE_START: self.keys[0], _RANGE_END: self.keys[-1]}
        return dg.RunRequest(run_key, tags={**tags, **ends}, asset_selection=selection)


def ranges_of(keys: Sequence[str], all_keys: Sequence[str], policy: dg.BackfillPolicy | None) -> Iterator[KeyRange]:
    """`keys` in runs of neighbours, each as long as one run may be under `policy`; in the order of `all_keys`.

    Of two dimensions a range is the product of both, so neighbours have the first one in common.
    """
    longest = most_per_run(policy)
    wanted = set(keys)
    run: list[str] = []
    for key in all_keys:
        if run and (key not in wanted or len(run) == longest or _first_dimension(key) != _first_dimension(run[-1])):
            yield KeyRange(tuple(run))
            run = []
        if key in wanted:
            run.append(key)
    if run:
        yield KeyRange(tuple(run))


def _first_dimension(key: str) -> str:
    """Of a key of two dimensions, of which the second one counts up first; '' of any other key."""
    return key.partition("|")[0] if isinstance(key, dg.MultiPartitionKey) else ""


def most_per_run(policy: dg.BackfillPolicy | None) -> int | None:
    """The most partitions of one run; None: no limit. Without a policy Dagster's backfills take one a run."""
    return 1 if policy is None else policy.max_partitions_per_run

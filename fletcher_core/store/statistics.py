"""Mean vector and norms of a partition at each run, kept beside its quarantine, and how far they moved since.

In come figures of `vector_health` and a run's id; out comes the change against the last other run, None where there is
nothing to compare with. One small JSON file a generation and partition, replaced whole: another model's vectors, being
another generation, are never compared.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import StoreError
from fletcher_core.store.durable import committed
from fletcher_core.store.generation import Generation
from fletcher_core.store.health import VectorHealth
from fletcher_core.store.place import Place
from fletcher_core.store.schema import folder_name
from fletcher_core.store.versions import STATISTICS_VERSION, NewerVersionError, check_version, version_of

_KEPT = 2  # runs: a run that is tried again is compared with the one before it, not with itself
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStatistics:
    """What a run left: `rows` that the figures are of, `mean` vector, mean of the norms, `at` in seconds since 1970."""

    run_id: str
    at: float
    rows: int
    norm_mean: float
    mean: list[float]


@dataclass(frozen=True)
class Drift:
    """How far a partition's vectors moved since the run `since`.

    `distance` is 1 - cosine of the two mean vectors, 0 to 2; `norm_change` the change of the mean norm as a share of
    the earlier one; `rows` the smaller number of rows of the two.
    """

    since: str
    distance: float
    norm_change: float
    rows: int


def record_statistics(generation: Generation, health: VectorHealth, run_id: str) -> Drift | None:
    """Keeps the figures of this run and compares them with those of the last other one, where both have rows.

    Raises:
        StoreError: the file cannot be written.
        NewerVersionError: a newer Fletcher wrote it.
    """
    path = _file(generation, health.partition_key)
    earlier = [run for run in _read(generation.place, path, generation.card.dimension) if run.run_id != run_id]
    if not health.sound:
        return None
    now = RunStatistics(run_id, time.time(), health.sound, health.norm_mean, health.mean.tolist())
    runs = [*earlier, now][-_KEPT:]
    content = {"version": STATISTICS_VERSION, "runs": [asdict(run) for run in runs]}
    with committed(path) as file:
        file.write(json.dumps(content).encode())
    generation.place.write_shared(path)
    return _drift(earlier[-1], now) if earlier else None


def _drift(before: RunStatistics, now: RunStatistics) -> Drift:
    distance = _cosine_distance(np.array(before.mean), np.array(now.mean))
    change = abs(now.norm_mean - before.norm_mean) / max(before.norm_mean, np.finfo(np.float64).tiny)
    return Drift(before.run_id, distance, float(change), min(before.rows, now.rows))


def _cosine_distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """0 for two zero vectors, 1 when one of them is."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return float(a.any() or b.any())
    return max(0.0, 1.0 - float(a @ b) / norms)


def _file(generation: Generation, partition_key: str) -> Path:
    return generation.root / "statistics" / generation.name / f"{folder_name(partition_key)}.json"


def _read(place: Place, path: Path, dimension: int) -> list[RunStatistics]:
    """The runs in the file, the last one last; none, with a warning, when it is damaged."""
    try:
        kept = place.read_shared(path)
        if kept is None:
            return []
        content = json.loads(kept)
        check_version(path, version_of(content), STATISTICS_VERSION)
        runs = [RunStatistics(**run) for run in content["runs"]]
        for run in runs:
            if (
                np.array(run.mean, np.float64).shape != (dimension,)
                or not np.isfinite([*run.mean, run.norm_mean]).all()
            ):
                raise ValueError(f"the mean vector of run {run.run_id!r} is none of {dimension} numbers")
        return runs
    except NewerVersionError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {str(path)!r}: {error}. Allow reading it, or move it away") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _log.warning(
            "the statistics in %r are damaged (%s): they are begun anew, without a comparison", str(path), error
        )
        return []

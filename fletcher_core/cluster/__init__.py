"""A run's windows computed by the machines of a Ray cluster; reading, commits and delivery stay with the run."""

from typing import TYPE_CHECKING, Any

from fletcher_core.cluster.ray_settings import RaySettings

if TYPE_CHECKING:
    from fletcher_core.cluster.workers import RayWorkers

__all__ = ["RaySettings", "RayWorkers"]


def __getattr__(name: str) -> Any:
    # The workers bring the embedder, which a Dagster code location that only has the settings should not wait for.
    if name == "RayWorkers":
        from fletcher_core.cluster.workers import RayWorkers

        return RayWorkers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

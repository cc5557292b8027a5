"""A run's windows computed by the machines of a Ray cluster; reading, commits and delivery stay with the run."""

from fletcher_core.cluster.ray_settings import RaySettings
from fletcher_core.cluster.workers import RayWorkers

__all__ = ["RaySettings", "RayWorkers"]

"""`FletcherRayResource`: which Ray cluster computes an asset's vectors, and what each worker of it gets.

In come settings, out go the workers of a run. Where a resource of dagster-ray has connected the process to its cluster,
that one is used.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, ModelWrapValidatorHandler, model_validator

from fletcher_core.cluster.ray_settings import RaySettings
from fletcher_dagster.setting_checks import known_now, shown_by_dagster

if TYPE_CHECKING:
    from fletcher_core.cluster import RayWorkers

_RAY_SETTINGS = ("workers", "cpus", "gpus", "start_timeout")


class FletcherRayResource(dg.ConfigurableResource[Any]):
    """A Ray cluster for `FletcherResource(engine="ray", ray=...)`: the machines that run the engines.

    The run itself detects changes, commits what the workers wrote and delivers. Workers write to the vector store: all
    machines mount it at the same path, or it is on object storage. They have the same Fletcher installed, with `ray`.

    Raises:
        ConfigError: a setting cannot work. Settings given as `EnvVar` are looked at in the run.
    """

    address: str = Field(
        default="",
        description="host:port of a cluster, auto for one on this machine, local to start one; empty: RAY_ADDRESS, "
        "else local. A connection that a resource of dagster-ray has made is used as it is.",
    )
    workers: int | None = Field(default=None, description="How many engines; None: all that the cluster has room for.")
    worker_engine: str = Field(default="auto", description="Of each worker: auto, mlx, cpu, native or openvino.")
    cpus: int | None = Field(
        default=None, description="CPU threads of a worker; None: 1 beside a GPU, else up to 4 of a node's."
    )
    gpus: float | None = Field(
        default=None, description="GPUs of a worker, or a part of one; None: 1 where the cluster has some."
    )
    runtime_env: dict[str, Any] = Field(default={}, description="Ray's runtime environment of the workers.")
    start_timeout: float = Field(default=300.0, description="Seconds to wait for a worker when there is none.")

    @model_validator(mode="wrap")
    @classmethod
    def _can_work(cls, given: Any, validated: ModelWrapValidatorHandler[FletcherRayResource]) -> FletcherRayResource:
        resource = validated(given)
        late = {name for name, value in given.items() if not known_now(value)} if isinstance(given, dict) else set()
        with shown_by_dagster():
            resource._settings(without=late)
        return resource

    def ray_workers(self, embedder: dict[str, Any], metrics: str = "") -> RayWorkers:
        """The workers, to be used as a context manager.

        Args:
            embedder: settings of `Embedder.load`.
            metrics: where the workers push their metrics to.
        """
        from fletcher_core.cluster import RayWorkers

        given = {name: value for name, value in embedder.items() if value is not None}
        return RayWorkers(self._settings(), metrics=metrics, **{**given, "engine": self.worker_engine})

    def _settings(self, without: Collection[str] = ()) -> RaySettings:
        settings = {name: getattr(self, name) for name in _RAY_SETTINGS if name not in without}
        return RaySettings(address=self.address or None, runtime_env=self.runtime_env, **settings)

"""How a run uses a Ray cluster: one dataclass of settings, checked when it is made. Imports nothing of Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fletcher_core.errors import ConfigError
from fletcher_core.setting_values import check_at_least, check_whole


@dataclass(frozen=True)
class RaySettings:
    """Which cluster, and what each worker of it gets. A worker is a process with one engine.

    Args:
        address: of the cluster, host:port; "auto" for one that runs on this machine, "local" for one that is started
            for this run. None: what the environment variable RAY_ADDRESS says, else "local". Where this process is
            connected to Ray already, as by a resource of dagster-ray, that connection is used, whatever this says.
        workers: how many; None: as many as the cluster has room for when the run begins.
        cpus: of a worker, which are its engine's threads; None: 1 where it has a GPU, else those of the smallest node,
            4 at most.
        gpus: of a worker, also a part of one, so that several share it; None: 1 where the cluster has any, else 0.
        runtime_env: Ray's, for the workers: {"pip": ...}, {"env_vars": ...}, {"working_dir": ...}.
        start_timeout: seconds to wait for a worker when there is none, as while a cluster grows or a pre-empted
            machine is replaced.

    Raises:
        ConfigError: a number that cannot be.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    runtime_env: Mapping[str, Any] = field(default_factory=dict, hash=False)
    start_timeout: float = 300.0

    def __post_init__(self) -> None:
        for name in ("workers", "cpus"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.gpus is not None:
            check_at_least("gpus", self.gpus, 0)
            if self.gpus > 1 and self.gpus != int(self.gpus):
                raise ConfigError(f"gpus is {self.gpus}; it is a part of one GPU, 0 to 1, or a whole number of them")
        check_at_least("start_timeout", self.start_timeout, 0)

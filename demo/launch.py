"""Runs a job of the project in this process and records the run as one of the code location in workspace.yaml.

`JobDefinition.execute_in_process` alone leaves out which code location a run belongs to, and the UI's timeline then
does not show it. Dagster has no public function that sets it, hence the private modules.
"""

from pathlib import Path

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.workspace.load import location_origins_from_yaml_paths

WORKSPACE = Path(__file__).resolve().parents[1] / "workspace.yaml"

# The console logger would print every event of the run.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def launch(instance: dg.DagsterInstance, job: dg.JobDefinition, run_id: str) -> dg.JobExecutionResult:
    """The finished run of `job`; failed steps are in its events. The job's executor must be the in-process one."""
    (location,) = location_origins_from_yaml_paths([str(WORKSPACE)])
    run = instance.create_run_for_job(
        job,
        run_id=run_id,
        run_config=_QUIET,
        tags=job.run_tags,
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job.name),
    )
    return execute_run(InMemoryJob(job), run, instance)

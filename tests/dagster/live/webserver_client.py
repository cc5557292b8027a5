"""What a user does in Dagster's UI, as GraphQL over HTTP: launches, cancels, turns on, looks at."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx

T = TypeVar("T")

FINISHED = ("SUCCESS", "FAILURE", "CANCELED")
BACKFILL_FINISHED = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED", "CANCELED")

_LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""
_BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_BACKFILL_STATE = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
    status numPartitions runs { runId status } error { message } } } }"""
_REPOSITORIES = """{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"""
_DAEMONS = """{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"""
_TICKS = """query($selector: InstigationSelector!) { instigationStateOrError(instigationSelector: $selector) {
    ... on InstigationState { status ticks(limit: 50) { status runIds error { message } } } } }"""


class WebserverClient:
    """A webserver with one code location. Every method fails on what GraphQL calls an error."""

    def __init__(self, address: str, location: str) -> None:
        self.address = address
        self._location = location
        self._http = httpx.Client(base_url=address, timeout=60)

    def __enter__(self) -> "WebserverClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def query(self, document: str, **variables: Any) -> dict[str, Any]:
        answer = self._http.post("/graphql", json={"query": document, "variables": variables})
        answer.raise_for_status()
        found = answer.json()
        assert not found.get("errors"), found["errors"]
        data: dict[str, Any] = found["data"]
        return data

    def repository(self) -> dict[str, str] | None:
        """The selector of the location's repository; None as long as it is not loaded."""
        nodes = self.query(_REPOSITORIES)["repositoriesOrError"].get("nodes", [])
        here = [node for node in nodes if node["location"]["name"] == self._location]
        return {"repositoryName": here[0]["name"], "repositoryLocationName": self._location} if here else None

    def daemon_is_healthy(self) -> bool:
        statuses = self.query(_DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
        return all(status["healthy"] for status in statuses if status["required"])

    def launch(self, job: str, tags: Mapping[str, str]) -> str:
        """The id of a new run of `job`."""
        params = {
            "selector": {**self._repository(), "jobName": job},
            "mode": "default",
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        answer = self.query(_LAUNCH, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def terminate(self, run_id: str) -> None:
        answer = self.query("mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess", answer

    def run_status(self, run_id: str) -> str:
        found = self.query("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id)
        status: str = found["runOrError"]["status"]
        return status

    def backfill(self, asset: str, partitions: Sequence[str]) -> str:
        """The id of a new backfill of `partitions`."""
        params = {"assetSelection": [{"path": [asset]}], "partitionNames": list(partitions)}
        answer = self.query(_BACKFILL, params=params)["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        backfill_id: str = answer["backfillId"]
        return backfill_id

    def backfill_state(self, backfill_id: str) -> dict[str, Any]:
        """Its `status`, `numPartitions` and `runs`."""
        state: dict[str, Any] = self.query(_BACKFILL_STATE, id=backfill_id)["partitionBackfillOrError"]
        return state

    def finished_backfill(self, backfill_id: str, seconds: float = 400) -> dict[str, Any]:
        state = self.backfill_state
        return until(lambda: found if (found := state(backfill_id))["status"] in BACKFILL_FINISHED else None, seconds)

    def cancel_backfill(self, backfill_id: str) -> None:
        document = "mutation($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }"
        answer = self.query(document, id=backfill_id)
        assert answer["cancelPartitionBackfill"]["__typename"] == "CancelBackfillSuccess", answer

    def turn_on_sensor(self, name: str) -> None:
        document = "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }"
        answer = self.query(document, s={**self._repository(), "sensorName": name})
        assert answer["startSensor"]["__typename"] == "Sensor", answer

    def turn_on_schedule(self, name: str) -> None:
        document = "mutation($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) { __typename } }"
        answer = self.query(document, s={**self._repository(), "scheduleName": name})
        assert answer["startSchedule"]["__typename"] == "ScheduleStateResult", answer

    def ticks(self, name: str) -> list[dict[str, Any]]:
        """Of a sensor or a schedule, the latest first."""
        ticks: list[dict[str, Any]] = self.query(_TICKS, selector={**self._repository(), "name": name})[
            "instigationStateOrError"
        ]["ticks"]
        return ticks

    def _repository(self) -> dict[str, str]:
        selector = self.repository()
        assert selector is not None, f"the code location {self._location!r} is not loaded"
        return selector


def until(look: Callable[[], T | None], seconds: float, every: float = 0.1) -> T:
    """The first thing that `look` finds within `seconds`."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(every)
    return found

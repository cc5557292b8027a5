"""What a user does in Dagster's UI, as GraphQL over HTTP: launches, cancels, turns on, looks at."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
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
    ... on InstigationState { id ticks(limit: 50) { status timestamp skipReason error { message } } } } }"""
_PREVIEW = """mutation($selector: ScheduleSelector!, $at: Float) {
    scheduleDryRun(selectorData: $selector, timestamp: $at) {
    __typename ... on PythonError { message } ... on DryRunInstigationTick { evaluationResult {
    runRequests { tags { key value } } skipReason error { message } } } } }"""
_RUNS = """query($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results {
    runId status startTime endTime tags { key value }
    assetMaterializations { metadataEntries { label ... on IntMetadataEntry { intValue } } } } } } }"""
_PARTITIONS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    assetPartitionStatuses { ... on DefaultPartitionStatuses {
    materializedPartitions failedPartitions unmaterializedPartitions materializingPartitions } } } } }"""


@dataclass(frozen=True)
class Run:
    """A run as its page tells of it: times in seconds since 1970, and the whole numbers of each materialization."""

    id: str
    status: str
    tags: dict[str, str]
    start: float | None
    end: float | None
    figures: list[dict[str, int]]

    @property
    def partitions(self) -> str | None:
        """Its partition, or `first...last`."""
        ends = [self.tags.get(f"dagster/asset_partition_range_{end}", "") for end in ("start", "end")]
        return self.tags.get("dagster/partition") or ("...".join(ends) if all(ends) else None)


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
        return self._launch({"jobName": job}, tags)

    def materialize(self, asset: str) -> str:
        """The id of a new run of `asset`, as by the button of that name."""
        return self._launch({"jobName": "__ASSET_JOB", "assetSelection": [{"path": [asset]}]}, {})

    def _launch(self, selected: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        params = {
            "selector": {**self._repository(), **selected},
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

    def turn_off_schedule(self, name: str) -> None:
        document = "mutation($id: String!) { stopRunningSchedule(id: $id) { __typename } }"
        answer = self.query(document, id=self._instigation(name)["id"])
        assert answer["stopRunningSchedule"]["__typename"] == "ScheduleStateResult", answer

    def preview_schedule(self, name: str, at: datetime) -> tuple[list[dict[str, str]], str | None]:
        """What a tick of a schedule `at` that time would ask for now, as the tags of each run, or why nothing."""
        selector = {**self._repository(), "scheduleName": name}
        tick = self.query(_PREVIEW, selector=selector, at=at.timestamp())["scheduleDryRun"]
        assert tick["__typename"] == "DryRunInstigationTick", tick
        found = tick["evaluationResult"]
        assert not found["error"], found["error"]
        return [_tags(request) for request in found["runRequests"] or []], found["skipReason"]

    def ticks(self, name: str) -> list[dict[str, Any]]:
        """The last 50 of a sensor or a schedule, the latest first; none of them may have failed."""
        ticks: list[dict[str, Any]] = self._instigation(name)["ticks"]
        assert not [tick["error"] for tick in ticks if tick["error"]]
        return ticks

    def runs_of(self, **tags: str) -> list[Run]:
        """Those with `tags` of Dagster's own, the oldest first."""
        wanted = [{"key": f"dagster/{key}", "value": value} for key, value in tags.items()]
        found = self.query(_RUNS, filter={"tags": wanted})["runsOrError"]["results"]
        return [
            Run(
                run["runId"],
                run["status"],
                _tags(run),
                run["startTime"],
                run["endTime"],
                [_figures(event) for event in run["assetMaterializations"]],
            )
            for run in reversed(found)
        ]

    def partitions(self, asset: str) -> dict[str, list[str]]:
        """The keys of the asset's partitions by their state, without the states that none is in."""
        node = self.query(_PARTITIONS, key={"path": [asset]})["assetNodeOrError"]
        return {
            state.removesuffix("Partitions"): sorted(keys)
            for state, keys in node["assetPartitionStatuses"].items()
            if keys
        }

    def _instigation(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.query(_TICKS, selector={**self._repository(), "name": name})[
            "instigationStateOrError"
        ]
        return found

    def _repository(self) -> dict[str, str]:
        selector = self.repository()
        assert selector is not None, f"the code location {self._location!r} is not loaded"
        return selector


def _tags(of: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in of["tags"]}


def _figures(materialization: Mapping[str, Any]) -> dict[str, int]:
    entries = materialization["metadataEntries"]
    return {entry["label"]: entry["intValue"] for entry in entries if entry.get("intValue") is not None}


def until(look: Callable[[], T | None], seconds: float, every: float = 0.1) -> T:
    """The first thing that `look` finds within `seconds`."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(every)
    return found

"""The workers on a Ray cluster: asked for, given shards, heard, and replaced when they are lost.

A worker is an actor of Ray's, which decides where it runs. What was out with one that is lost is given back, for others
to do; another worker is asked for in its place, which comes when the cluster has room: at once, or when a pre-empted
machine has been replaced.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fletcher_core.cluster.connection import ray_module
from fletcher_core.cluster.ray_settings import RaySettings
from fletcher_core.cluster.shard import Shard, ShardResult, WorkerFacts
from fletcher_core.engines.failover import EngineHealth, ProbeIntervals
from fletcher_core.errors import ConfigError, EngineError, FletcherError
from fletcher_core.run_compute import Packed
from fletcher_core.sql import first_line

_LOG = logging.getLogger(__name__)

SHARDS_AT_ONCE = 2
"""Out with a worker: one at work, one that waits or is being written."""
# Threads of a worker: one for each of them, and one to be told something.
_THREADS = SHARDS_AT_ONCE + 1
# Workers that may be lost over one shard, and not with their machine, until it is held to be the reason.
_ATTEMPTS = 4
_LOOK_SECONDS = 0.1
# For a worker to send its last metrics and spans.
_CLOSE_SECONDS = 5.0
_SAID_AFTER_SECONDS = 5.0
# Those that compute on a GPU where there is one.
_GPU_ENGINES = ("auto", "mlx")
# What the workers get to know of our environment: where traces and metrics go.
_TELEMETRY = ("OTEL_",)


@dataclass(eq=False)
class Assignment:
    """A shard that is to be done, or with a worker; `have_rows` says of each piece whether it has any, `rows` is Ray's
    reference to them, and `lost_on` the nodes of the workers that were lost with it."""

    shard: Shard
    packed: Packed
    have_rows: tuple[bool, ...]
    rows: Any
    lost_on: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Member:
    """A worker; `loading` is Ray's reference to its facts until they are here."""

    number: int
    actor: Any
    loading: Any
    facts: WorkerFacts | None = None
    health: EngineHealth = field(default_factory=EngineHealth)
    out: dict[Any, Assignment] = field(default_factory=dict)


class Crew:
    """Workers of one kind, as many as were asked for or fit the cluster; this process is connected to it.

    Attributes:
        facts: of the first worker that came; all must have its version and model.
        asked: how many workers there are to be.
        given_back: shards that were with workers that were lost.
        last_failure: why the last one was lost, or "".

    Raises:
        ConfigError: Ray cannot start a worker so.
    """

    def __init__(self, settings: RaySettings, embedder: Mapping[str, Any], metrics: str) -> None:
        self.facts: WorkerFacts | None = None
        self.given_back: deque[Assignment] = deque()
        self.last_failure = ""
        self._settings, self._embedder, self._metrics = settings, embedder, metrics
        self._members: list[_Member] = []
        self._numbered = self._lost = self._came_back = self._again = 0
        self._intervals = ProbeIntervals()
        self._wait = 0.0  # before the next worker is asked for
        self._ask_at: list[float] = []
        self._cpus, self._gpus, self.asked = shares(settings, embedder)
        self._options = self._actor_options()
        for _ in range(self.asked):
            self._ask()

    @property
    def ready(self) -> list[WorkerFacts]:
        """Of those that have loaded their model."""
        return [member.facts for member in self._members if member.facts is not None]

    @property
    def has_room(self) -> bool:
        """Whether one of them can be given a shard."""
        return bool(self._with_room())

    @property
    def is_at_work(self) -> bool:
        """Whether any has one."""
        return any(member.out for member in self._members)

    @property
    def health(self) -> EngineHealth:
        """Lost workers and failures of the workers' own engines; `batches` counts shards that were done again."""
        each = [member.health for member in self._members]
        said = [health.last_failure for health in each if health.last_failure]
        return EngineHealth(
            failed=self._lost + sum(health.failed for health in each),
            taken_back=self._came_back + sum(health.taken_back for health in each),
            batches=self._again + sum(health.batches for health in each),
            standing_in=(bool(self._lost) and any(member.facts is None for member in self._members))
            or any(health.is_impaired for health in each),
            last_failure=self.last_failure or (said[-1] if said else ""),
        )

    @property
    def wanted(self) -> str:
        """What a worker takes, and what the cluster has, in words."""
        ray = ray_module()

        def said(resources: Mapping[str, float]) -> str:
            return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"

        return (
            f"each takes {self._cpus} CPUs and {self._gpus:g} GPUs, and of the cluster's "
            f"{said(ray.cluster_resources())}, {said(ray.available_resources())} are free"
        )

    def wait_for(self, workers: int) -> None:
        """Waits until so many workers have loaded their model.

        Raises:
            ConfigError: they did not come in `start_timeout` seconds.
            ModelError, EngineError: what the first worker's `Embedder.load` raised.
        """
        began, is_said = time.monotonic(), False
        while (there := len(self.ready)) < workers:
            self.hear()
            waited = time.monotonic() - began
            if waited > _SAID_AFTER_SECONDS and not is_said:
                is_said = True
                _LOG.info("waiting for Ray workers, %d of %d are there: %s", there, workers, self.wanted)
            if waited > self._settings.start_timeout:
                failed = f" One that came failed: {self.last_failure}." if self.last_failure else ""
                raise ConfigError(
                    f"{there} of {workers} Ray workers came in {waited:.0f} s: {self.wanted}.{failed} Ask for less "
                    "with cpus and gpus, free the cluster, or add machines to it"
                )

    def hand(self, work: Assignment) -> None:
        """Gives a shard to whoever has least, of those that have room."""
        member = min(self._with_room(), key=lambda member: len(member.out))
        try:
            reference = member.actor.embed.remote(work.shard, work.rows)
        except Exception as error:  # noqa: BLE001 - Ray knows nothing of the worker any more
            self.given_back.appendleft(work)
            self._lose(member, first_line(error))
        else:
            member.out[reference] = work

    def hear(self) -> list[tuple[Assignment, ShardResult]]:
        """The shards that are done, waiting a moment for them; those of a lost worker are `given_back`.

        Raises:
            EngineError: workers are lost over the same shard again and again.
            FletcherError: what a worker raised that concerns the run.
        """
        done = self._answers()
        now = time.monotonic()
        for at in [at for at in self._ask_at if at <= now]:
            self._ask_at.remove(at)
            self._ask()
        return done

    def drop(self, call: str) -> None:
        """What is out, all of it of this `Shard.call`, is not wanted any more."""
        self.given_back.clear()
        for member in self._members:
            if member.out:
                with suppress(Exception):  # what is lost needs no telling
                    member.actor.cancel.remote(call)
                member.out.clear()

    def close(self) -> None:
        """Ends the workers."""
        ray = ray_module()
        members, self._members = self._members, []
        with suppress(Exception):  # a cluster that is gone has ended them already
            if closing := [member.actor.close.remote() for member in members if member.facts is not None]:
                ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
            for member in members:
                ray.kill(member.actor)

    def _with_room(self) -> list[_Member]:
        return [member for member in self._members if member.facts is not None and len(member.out) < SHARDS_AT_ONCE]

    def _actor_options(self) -> dict[str, Any]:
        told = {name: value for name, value in os.environ.items() if name.startswith(_TELEMETRY)}
        runtime_env = dict(self._settings.runtime_env)
        if told:
            runtime_env["env_vars"] = {**told, **runtime_env.get("env_vars", {})}
        options: dict[str, Any] = {
            "num_cpus": self._cpus,
            "num_gpus": self._gpus,
            "max_concurrency": _THREADS,
            "max_restarts": 0,  # one in its place is asked for here, and what it had goes to others meanwhile
            "scheduling_strategy": "SPREAD",
        }
        return options | ({"runtime_env": runtime_env} if runtime_env else {})

    def _ask(self) -> None:
        """Asks Ray for a worker, which comes when there is room."""
        from fletcher_core.cluster.worker import Worker

        number, self._numbered = self._numbered, self._numbered + 1
        embedder = dict(self._embedder)
        if not self._gpus:
            embedder.setdefault("threads", self._cpus)
        try:
            actor = ray_module().remote(**self._options)(Worker).remote(number, embedder, self._metrics)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"Ray cannot start a worker so: {first_line(error)}. Look at runtime_env") from error
        self._members.append(_Member(number, actor, actor.load.remote()))

    def _answers(self) -> list[tuple[Assignment, ShardResult]]:
        ray = ray_module()
        loading = [member.loading for member in self._members if member.facts is None]
        references = [reference for member in self._members for reference in member.out] + loading
        if not references:
            time.sleep(_LOOK_SECONDS)
            return []
        ready, _ = ray.wait(references, timeout=_LOOK_SECONDS)
        done = []
        for reference in ready:
            member = next(m for m in self._members if m.loading == reference or reference in m.out)
            try:
                value = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                self._failed(member, error)
            except ray.exceptions.RuntimeEnvSetupError as error:
                raise ConfigError(f"runtime_env cannot be set up for a Ray worker: {first_line(error)}") from error
            except ray.exceptions.RayError as error:
                began_badly = getattr(error, "actor_init_failed", False)  # then what was raised is at a traceback's end
                self._lose(member, str(error).strip().splitlines()[-1] if began_badly else first_line(error))
            else:
                if isinstance(value, WorkerFacts):
                    self._welcome(member, value)
                else:
                    member.health, self._wait = value.health, 0.0
                    done.append((member.out.pop(reference), value))
        return done

    def _welcome(self, member: _Member, facts: WorkerFacts) -> None:
        """A worker has loaded its model."""
        known = self.facts or facts
        if (facts.version, facts.card) != (known.version, known.card):
            self._lose(
                member,
                f"it has Fletcher {facts.version} and model {facts.card.name} ({facts.card.fingerprint[:12]}), the "
                f"others Fletcher {known.version} and {known.card.name} ({known.card.fingerprint[:12]}): install the "
                "same on all machines",
                host=facts.host,
            )
            return
        member.facts, self.facts = facts, known
        if member.number >= self.asked:
            self._came_back += 1
            _LOG.info("a Ray worker on %s takes the place of a lost one", facts.host)

    def _failed(self, member: _Member, error: Any) -> None:
        """A worker's call raised: an engine that is broken is one worker's matter, all else the run's."""
        cause = error.cause
        if self.facts is not None and (isinstance(cause, EngineError) or member.facts is None):
            self._lose(member, str(cause))
        elif isinstance(cause, FletcherError):
            raise cause from error
        else:
            raise EngineError(f"a Ray worker failed: {type(cause).__name__}: {first_line(cause)}") from error

    def _lose(self, member: _Member, why: str, host: str = "") -> None:
        """A worker is gone, or of no use: what it had is given back, and another one is asked for."""
        host = member.facts.host if member.facts is not None else host
        self.last_failure = f"the Ray worker{f' on {host}' if host else ''} was lost: {why}"
        # What its own engine went through counts on.
        self._lost += 1 + member.health.failed
        self._came_back += member.health.taken_back
        self._again += len(member.out) + member.health.batches
        _LOG.warning("%s; %d shards of it go to others", self.last_failure, len(member.out))
        self._members.remove(member)
        with suppress(Exception):
            ray_module().kill(member.actor)
        self._ask_at.append(time.monotonic() + self._wait)
        self._wait = min(max(2 * self._wait, self._intervals.first), self._intervals.longest)
        for work in member.out.values():
            work.lost_on.append(member.facts.node if member.facts is not None else "")
            if _not_with_their_node(work.lost_on) >= _ATTEMPTS:
                raise EngineError(
                    f"{_ATTEMPTS} Ray workers were lost over the same {sum(work.shard.sizes)} rows (shard "
                    f"{work.shard.number}), and their machines were not: {why}. With isolation='process' a row that "
                    "ends an engine is found and set aside"
                )
            work.shard = replace(work.shard, plans=tuple(plan.again() for plan in work.shard.plans))
            self.given_back.append(work)


def shares(settings: RaySettings, embedder: Mapping[str, Any]) -> tuple[int, float, int]:
    """CPUs and GPUs of a worker, and how many workers, by the cluster's nodes where the settings leave it open."""
    nodes = [node["Resources"] for node in ray_module().nodes() if node["Alive"]]
    gpus = settings.gpus
    if gpus is None:
        can_use = embedder.get("engine", "auto") in _GPU_ENGINES and embedder.get("precision") != "int8"
        gpus = 1.0 if can_use and any(node.get("GPU") for node in nodes) else 0.0
    able = [node for node in nodes if not gpus or node.get("GPU")]
    cores = [int(node["CPU"]) for node in able if node.get("CPU", 0) >= 1]
    cpus = settings.cpus or (1 if gpus else min([4, *cores]) if cores else 1)
    fitting = sum(int(min(node.get("CPU", 0) // cpus, _on_gpus(node.get("GPU", 0), gpus))) for node in able)
    return cpus, gpus, settings.workers or max(1, fitting)


def _on_gpus(there: float, each: float) -> float:
    """How many workers a node's GPUs have room for. A part of one is a part of a single one."""
    if not each:
        return float("inf")
    return there // each if each >= 1 else there * int(1 / each + 1e-9)


def _not_with_their_node(nodes: Sequence[str]) -> int:
    """How many of the workers that were on these `nodes` of Ray's were lost alone. A machine that is gone, as when it
    was pre-empted, says nothing against the rows; Ray itself knows of it some seconds after the worker's silence."""
    if len(nodes) < _ATTEMPTS:
        return 0  # whatever they were
    dead = {node["NodeID"] for node in ray_module().nodes() if not node["Alive"]}
    return sum(node not in dead for node in nodes)

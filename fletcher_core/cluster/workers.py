"""The workers of a run on a Ray cluster: windows out to them, what they made of them back, and those that are lost
replaced.

A worker is an actor of Ray's, which decides where it runs. Each has a shard at work and one that waits; what was out
with a worker that is lost goes to others, and another worker is asked for in its place, which comes when the cluster
has room: at once, or when a pre-empted machine has been replaced.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any
from uuid import uuid4

from fletcher_core.cluster.ray_settings import RaySettings
from fletcher_core.cluster.shard import Shard, ShardResult, WorkerFacts
from fletcher_core.engines.failover import EngineHealth, ProbeIntervals
from fletcher_core.errors import ConfigError, EngineError, FletcherError
from fletcher_core.models import ModelCard
from fletcher_core.partition_run import RunContext
from fletcher_core.prefetch import Prefetched
from fletcher_core.run_compute import Finished, FinishedPiece, Packed
from fletcher_core.sql import first_line
from fletcher_core.stop import Stop
from fletcher_core.telemetry.push import check_target
from fletcher_core.telemetry.tracing import headers_of_current

_LOG = logging.getLogger(__name__)

# Shards out with a worker at a time: one at work, one that waits or is being written.
_OUT = 2
# Threads of a worker: those, and one to be told something.
_THREADS = _OUT + 1
# Rows of a window at least, and of the first ones; at its end a run is cut so small that its workers end together.
_FEWEST_ROWS = 256
# Workers that may be lost over one shard, and not with their machine, until it is held to be the reason.
_ATTEMPTS = 4
_LOOK_SECONDS = 0.1
# For a worker to send its last metrics and spans.
_CLOSE_SECONDS = 5.0
_SAID_AFTER_SECONDS = 5.0
_CONNECT_SECONDS = 10.0
# Those that compute on a GPU where there is one.
_GPU_ENGINES = ("auto", "mlx")
# What the workers get to know of our environment: where traces and metrics go.
_TELEMETRY = ("OTEL_",)


@dataclass(frozen=True)
class RemoteEngine:
    """The workers' engines as one, for reports."""

    name: str
    device: str
    precision: str


@dataclass(eq=False)
class _Out:
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
    out: dict[Any, _Out] = field(default_factory=dict)


class RayWorkers:
    """Computes the windows of runs on a Ray cluster: give it to `materialize` as its embedder.

    Use it as a context manager: workers are started when the block begins, and end with it. Several runs may go through
    it, one after another.

    Args:
        settings: of the cluster.
        embedder: settings of `Embedder.load` for the workers; `threads` are the worker's `cpus` when not given.
        metrics: where workers push their metrics to, as `telemetry.push.Pusher` takes it.

    Raises (on entering, but for `metrics`):
        ConfigError: Ray is not installed or cannot be reached, the cluster has no room for a worker, `metrics` or
            `runtime_env` cannot work.
        ModelError, EngineError: what the first worker's `Embedder.load` raised.
    """

    def __init__(self, settings: RaySettings | None = None, *, metrics: str = "", **embedder: Any) -> None:
        check_target(metrics)
        self.settings = settings or RaySettings()
        self._embedder = embedder
        self._metrics = metrics
        self._members: list[_Member] = []
        self._facts: WorkerFacts | None = None
        self._asked = self._numbered = 0
        self._is_open = self._is_ours = False
        self._lost = self._came_back = self._again = 0
        self._last_failure = ""
        self._intervals = ProbeIntervals()
        self._wait = 0.0  # before the next worker is asked for
        self._ask_at: list[float] = []
        self.cache = None

    # As an embedder

    @property
    def card(self) -> ModelCard:
        """The model's."""
        return self._known.card

    @property
    def engine(self) -> RemoteEngine:
        """What the workers compute on, all of them together."""
        facts = self._known
        there = [member.facts for member in self._members if member.facts is not None]
        hosts = len({known.host for known in there})
        where = f"{hosts} hosts" if hosts > 1 else "1 host"
        device = f"Ray workers: {len(there) or self._asked} on {where} ({facts.device})"
        return RemoteEngine(facts.engine, device, facts.precision)

    @property
    def tokenizer(self) -> str:
        """Name of the workers' tokenizer."""
        return self._known.tokenizer

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
            last_failure=self._last_failure or (said[-1] if said else ""),
        )

    def window_rows(self, rate: float, commit_seconds: float, left: int | None) -> int:
        """See `Compute`: what a worker does in half of `commit_seconds`, and less towards the end."""
        workers = max(1, sum(member.facts is not None for member in self._members))
        rows = max(_FEWEST_ROWS, int(rate / workers * commit_seconds / _OUT))
        return rows if left is None else min(rows, max(_FEWEST_ROWS, left // (3 * workers)))

    @property
    def _known(self) -> WorkerFacts:
        if self._facts is None:
            raise ConfigError(
                "RayWorkers has no workers yet: use it as a context manager, `with RayWorkers(...) as w:`"
            )
        return self._facts

    # The cluster

    def __enter__(self) -> "RayWorkers":
        try:
            self._connect()
            self._start()
        except BaseException:
            self.close()
            raise
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, and the cluster if it was started for them."""
        self._is_open = False
        ray = _ray()
        members, self._members = self._members, []
        if ray.is_initialized():
            with suppress(Exception):  # a cluster that is gone has ended them already
                if closing := [member.actor.close.remote() for member in members if member.facts is not None]:
                    ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
                for member in members:
                    ray.kill(member.actor)
            if self._is_ours:
                ray.shutdown()
        self._is_ours = False

    def _connect(self) -> None:
        ray = _ray()
        if ray.is_initialized():
            return
        address = self.settings.address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            _check_answers(address)
            ray.init(address=address, logging_level=logging.WARNING, include_dashboard=False)
        except Exception as error:
            raise ConfigError(
                f"the Ray cluster at {address!r} cannot be reached: {first_line(error)}. Give the address of one that "
                "runs (ray start --head prints it), or 'local'; with token authentication, set RAY_AUTH_MODE=token and "
                "the token here too"
            ) from error
        self._is_ours = True

    def _start(self) -> None:
        self._cpus, self._gpus, self._asked = self._shares()
        self._facts, self._numbered, self._wait, self._ask_at = None, 0, 0.0, []
        self._options = self._actor_options()
        for _ in range(self._asked):
            self._ask()
        self.wait_for(1)

    def _shares(self) -> tuple[int, float, int]:
        """CPUs and GPUs of a worker, and how many workers."""
        settings = self.settings
        nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
        gpus = settings.gpus
        if gpus is None:
            can_use = self._embedder.get("engine", "auto") in _GPU_ENGINES and self._embedder.get("precision") != "int8"
            gpus = 1.0 if can_use and any(node.get("GPU") for node in nodes) else 0.0
        able = [node for node in nodes if not gpus or node.get("GPU")]
        cores = [int(node["CPU"]) for node in able if node.get("CPU", 0) >= 1]
        cpus = settings.cpus or (1 if gpus else min([4, *cores]) if cores else 1)
        fitting = sum(int(min(node.get("CPU", 0) // cpus, _on_gpus(node.get("GPU", 0), gpus))) for node in able)
        return cpus, gpus, settings.workers or max(1, fitting)

    def _actor_options(self) -> dict[str, Any]:
        told = {name: value for name, value in os.environ.items() if name.startswith(_TELEMETRY)}
        runtime_env = dict(self.settings.runtime_env)
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
            actor = _ray().remote(**self._options)(Worker).remote(number, embedder, self._metrics)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"Ray cannot start a worker so: {first_line(error)}. Look at runtime_env") from error
        self._members.append(_Member(number, actor, actor.load.remote()))

    def wait_for(self, workers: int) -> None:
        """Waits until so many workers have loaded their model; a run needs one, and takes the others as they come.

        Raises:
            ConfigError: they did not come in `start_timeout` seconds.
            ModelError, EngineError: what the first worker's `Embedder.load` raised.
        """
        began, is_said = time.monotonic(), False
        while (there := sum(member.facts is not None for member in self._members)) < workers:
            self._hear(self._loading(), deque())
            self._replace_lost()
            waited = time.monotonic() - began
            if waited > _SAID_AFTER_SECONDS and not is_said:
                is_said = True
                _LOG.info("waiting for Ray workers, %d of %d are there: %s", there, workers, self._wanted())
            if waited > self.settings.start_timeout:
                failed = f" One that came failed: {self._last_failure}." if self._last_failure else ""
                raise ConfigError(
                    f"{there} of {workers} Ray workers came in {waited:.0f} s: {self._wanted()}.{failed} Ask for less "
                    "with cpus and gpus, free the cluster, or add machines to it"
                )

    def _wanted(self) -> str:
        ray = _ray()

        def said(resources: Mapping[str, float]) -> str:
            return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"

        return (
            f"each takes {self._cpus} CPUs and {self._gpus:g} GPUs, and of the cluster's "
            f"{said(ray.cluster_resources())}, {said(ray.available_resources())} are free"
        )

    # Windows

    def run(
        self, windows: Iterator[Packed], context: RunContext, stop: Stop, through: Callable[[int], None]
    ) -> Generator[Finished]:
        """See `Compute`: in the order in which workers are done."""
        if not self._is_open:
            raise ConfigError("the block of RayWorkers is over, and its workers with it: embed inside of the block")
        again: deque[_Out] = deque()
        idle_since = time.monotonic()
        call = uuid4().hex
        with Prefetched(self._shards(windows, context, call), 1) as ahead:
            try:
                while not ahead.over or again or self._flying():
                    stop.check()
                    yield from self._hand_out(again, ahead)
                    for out, result in self._hear([*self._flying(), *self._loading()], again):
                        through(sum(piece.tally.embedded for piece in result.pieces))
                        yield out.packed, self._accounted(out, result, context)
                    self._replace_lost()
                    if any(member.facts is not None for member in self._members):
                        idle_since = time.monotonic()
                    elif time.monotonic() - idle_since > self.settings.start_timeout:
                        raise EngineError(
                            f"all Ray workers were lost, and none came in {self.settings.start_timeout:.0f} s "
                            f"({self._wanted()}); the last one: {self._last_failure}"
                        )
            finally:
                for member in self._members:
                    if member.out:
                        with suppress(Exception):  # what is lost needs no telling
                            member.actor.cancel.remote(call)
                        member.out.clear()

    def _shards(self, windows: Iterator[Packed], context: RunContext, call: str) -> Iterator[_Out]:
        """On the reading thread: windows become shards, and their rows Ray's."""
        trace = headers_of_current()
        for number, packed in enumerate(windows):
            pieces = [piece for piece in packed.pieces if piece.rows.num_rows]
            sizes = tuple(piece.rows.num_rows for piece in pieces)
            plans = tuple(
                context.generation.plan_segment(piece.run.partition.key, size, context.run_id, piece.run.folder)
                for piece, size in zip(pieces, sizes, strict=True)
            )
            rows = None if packed.rows is None else _ray().put(packed.rows)
            without_rows = [replace(piece, rows=piece.rows.schema.empty_table()) for piece in packed.pieces]
            have_rows = tuple(piece.rows.num_rows > 0 for piece in packed.pieces)
            shard = Shard(number, context.run_id, call, sizes, plans, trace)
            yield _Out(shard, replace(packed, rows=None, pieces=without_rows), have_rows, rows)

    def _hand_out(self, again: deque[_Out], ahead: Prefetched[_Out]) -> Iterator[Finished]:
        """Gives shards to workers that have room, to whom has least first; yields those without rows as they are."""
        while True:
            free = [member for member in self._members if member.facts is not None and len(member.out) < _OUT]
            if not free or (not again and ahead.over):
                return
            out = again.popleft() if again else ahead.take(wait=False)
            if out is None:
                return
            if out.rows is None:
                yield out.packed, [None] * len(out.packed.pieces)
                continue
            member = min(free, key=lambda member: len(member.out))
            try:
                reference = member.actor.embed.remote(out.shard, out.rows)
            except Exception as error:  # noqa: BLE001 - Ray knows nothing of the worker any more
                again.appendleft(out)
                self._lose(member, first_line(error), again)
            else:
                member.out[reference] = out

    def _accounted(self, out: _Out, result: ShardResult, context: RunContext) -> list[FinishedPiece | None]:
        """The pieces in their places; the worker's seconds are told to the run's clock as if they ended now."""
        now = time.perf_counter()
        for span in result.spans:
            context.clock.busy(span.stage, now + span.began, now + span.ended)
        pieces = iter(result.pieces)
        finished = [next(pieces) if has_rows else None for has_rows in out.have_rows]
        for piece in finished:
            if piece is not None:
                piece.tally.add_seconds({"read": out.packed.read_seconds}, piece.share)
        return finished

    def _flying(self) -> list[Any]:
        return [reference for member in self._members for reference in member.out]

    def _loading(self) -> list[Any]:
        return [member.loading for member in self._members if member.facts is None]

    def _hear(self, references: list[Any], again: deque[_Out]) -> list[tuple[_Out, ShardResult]]:
        """What came in, waiting a moment for it; shards of a lost worker go to `again`."""
        ray = _ray()
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
                self._failed(member, error, again)
            except ray.exceptions.RuntimeEnvSetupError as error:
                raise ConfigError(f"runtime_env cannot be set up for a Ray worker: {first_line(error)}") from error
            except ray.exceptions.RayError as error:
                began_badly = getattr(error, "actor_init_failed", False)  # then what was raised is at a traceback's end
                self._lose(member, str(error).strip().splitlines()[-1] if began_badly else first_line(error), again)
            else:
                if isinstance(value, WorkerFacts):
                    self._welcome(member, value, again)
                else:
                    member.health, self._wait = value.health, 0.0
                    done.append((member.out.pop(reference), value))
        return done

    def _welcome(self, member: _Member, facts: WorkerFacts, again: deque[_Out]) -> None:
        """A worker has loaded its model."""
        known = self._facts or facts
        if (facts.version, facts.card) != (known.version, known.card):
            self._lose(
                member,
                f"it has Fletcher {facts.version} and model {facts.card.name} ({facts.card.fingerprint[:12]}), the "
                f"others Fletcher {known.version} and {known.card.name} ({known.card.fingerprint[:12]}): install the "
                "same on all machines",
                again,
                host=facts.host,
            )
            return
        member.facts, self._facts = facts, known
        if member.number >= self._asked:
            self._came_back += 1
            _LOG.info("a Ray worker on %s takes the place of a lost one", facts.host)

    def _failed(self, member: _Member, error: Any, again: deque[_Out]) -> None:
        """A worker's call raised: an engine that is broken is one worker's matter, all else the run's."""
        cause = error.cause
        if self._facts is not None and (isinstance(cause, EngineError) or member.facts is None):
            self._lose(member, str(cause), again)
        elif isinstance(cause, FletcherError):
            raise cause from error
        else:
            raise EngineError(f"a Ray worker failed: {type(cause).__name__}: {first_line(cause)}") from error

    def _lose(self, member: _Member, why: str, again: deque[_Out], host: str = "") -> None:
        """A worker is gone, or of no use: what it had goes to others, and another one is asked for."""
        host = member.facts.host if member.facts is not None else host
        self._last_failure = f"the Ray worker{f' on {host}' if host else ''} was lost: {why}"
        # What its own engine went through counts on.
        self._lost += 1 + member.health.failed
        self._came_back += member.health.taken_back
        self._again += len(member.out) + member.health.batches
        _LOG.warning("%s; %d shards of it go to others", self._last_failure, len(member.out))
        self._members.remove(member)
        with suppress(Exception):
            _ray().kill(member.actor)
        self._ask_at.append(time.monotonic() + self._wait)
        self._wait = min(max(2 * self._wait, self._intervals.first), self._intervals.longest)
        for out in member.out.values():
            out.lost_on.append(member.facts.node if member.facts is not None else "")
            if _not_with_their_node(out.lost_on) >= _ATTEMPTS:
                raise EngineError(
                    f"{_ATTEMPTS} Ray workers were lost over the same {sum(out.shard.sizes)} rows (shard "
                    f"{out.shard.number}), and their machines were not: {why}. With isolation='process' a row that "
                    "ends an engine is found and set aside"
                )
            out.shard = replace(out.shard, plans=tuple(plan.again() for plan in out.shard.plans))
            again.append(out)

    def _replace_lost(self) -> None:
        now = time.monotonic()
        for at in [at for at in self._ask_at if at <= now]:
            self._ask_at.remove(at)
            self._ask()


def _check_answers(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself tries for many minutes, and cannot be interrupted meanwhile."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _not_with_their_node(nodes: Sequence[str]) -> int:
    """How many of the workers that were on these `nodes` of Ray's were lost alone. A machine that is gone, as when it
    was pre-empted, says nothing against the rows; Ray itself knows of it some seconds after the worker's silence."""
    if len(nodes) < _ATTEMPTS:
        return 0  # whatever they were
    dead = {node["NodeID"] for node in _ray().nodes() if not node["Alive"]}
    return sum(node not in dead for node in nodes)


def _on_gpus(there: float, each: float) -> float:
    """How many workers a node's GPUs have room for. A part of one is a part of a single one."""
    if not each:
        return float("inf")
    return there // each if each >= 1 else there * int(1 / each + 1e-9)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"Ray cannot be imported ({error}): install Fletcher's extra `ray`") from error
    return ray

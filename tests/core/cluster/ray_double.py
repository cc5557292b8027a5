"""Ray's calls that `RayWorkers` makes, answered in this process in an order that a random generator says, with workers
lost on the way. Ray itself is at work in `test_ray_workers.py`; this is for what cannot be brought about there at will.
"""

import random
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import ray.exceptions


class Reference:
    """What a call will have returned, once `RayDouble.wait` has chosen it; `put` makes one of a value."""

    def __init__(self, actor: "Actor", call: Callable[[], Any], name: str, arguments: Sequence[Any] = ()) -> None:
        self.actor, self.call, self.name, self.arguments = actor, call, name, arguments
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_done = False

    def work(self) -> None:
        try:
            self.value = self.call()
        except Exception as error:  # noqa: BLE001 - as Ray does
            self.error = ray.exceptions.RayTaskError(self.name, "", error).as_instanceof_cause()
        self.is_done = True


class Actor:
    def __init__(self, double: "RayDouble", kind: type, arguments: Sequence[Any]) -> None:
        self.is_lost = False
        self._double = double
        self._worker = kind(*arguments)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._worker, name)

        def remote(*arguments: Any) -> Reference:
            values = [one.value if isinstance(one, Reference) else one for one in arguments]
            reference = Reference(self, lambda: method(*values), name, arguments)
            if name in ("cancel", "close") and not self.is_lost:
                reference.work()
            return reference

        return SimpleNamespace(remote=remote)


class RayDouble:
    """Stands where `import ray` stands.

    Attributes:
        losses: how many workers may yet be lost, each with a shard that it had, at times written already.
        risk: that one is lost with a shard, 0 to 1, as long as there are `losses`.
        starts: how many workers may yet load their model, before others are lost over it.
        is_slow: says of a call's arguments that it is not done yet.
        nodes_have: of each node its resources.
        gone: names of nodes that are no more.
        late: calls of lost workers, which go on at some later time.
        calls: names of the calls that were worked on.
    """

    exceptions = ray.exceptions

    def __init__(
        self, chance: random.Random, losses: int = 0, nodes: Sequence[dict[str, float]] = ({"CPU": 2},)
    ) -> None:
        self.chance, self.losses, self.risk = chance, losses, 0.3
        self.starts, self._in_vain = 1000, 0
        self.is_slow: Callable[[Sequence[Any]], bool] = lambda _: False
        self.late: list[Reference] = []
        self.calls: list[str] = []
        self.nodes_have = list(nodes)
        self.gone: set[str] = set()

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        there = [{"NodeID": str(n), "Alive": True, "Resources": node} for n, node in enumerate(self.nodes_have)]
        return there + [{"NodeID": name, "Alive": False, "Resources": {}} for name in self.gone]

    def cluster_resources(self) -> dict[str, float]:
        return dict(self.nodes_have[0])

    available_resources = cluster_resources

    def remote(self, **_: Any) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda *arguments: Actor(self, kind, arguments))

    def put(self, value: Any) -> Reference:
        reference = Reference(None, lambda: value, "put")  # type: ignore[arg-type]
        reference.work()
        return reference

    def wait(
        self, references: list[Reference], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Reference], list[Reference]]:
        quick = [one for one in references if not self.is_slow(one.arguments)]
        self._in_vain = 0 if quick else self._in_vain + 1
        if (not quick and self._in_vain < 3000) or self.chance.random() < 0.5:  # nothing is done yet
            time.sleep(0.001)
            return [], references
        if self.late and self.chance.random() < 0.5:
            self.late.pop(self.chance.randrange(len(self.late))).work()
        chosen = self.chance.choice(quick or references)
        self.calls.append(chosen.name)
        self.starts -= chosen.name == "load"
        if chosen.actor.is_lost or self.starts < 0:
            self._lost(chosen)
        elif chosen.name == "embed" and self.losses and self.chance.random() < self.risk:
            self.losses -= 1
            chosen.actor.is_lost = True
            if self.chance.random() < 0.5:
                chosen.work()
            self._lost(chosen)
        elif not chosen.is_done:
            chosen.work()
        return [chosen], [one for one in references if one is not chosen]

    def _lost(self, reference: Reference) -> None:
        again = Reference(reference.actor, reference.call, reference.name)
        self.late.append(again)
        reference.error = ray.exceptions.RayActorError(error_msg="its machine is gone")
        reference.is_done = True

    def get(self, reference: Reference) -> Any:
        if reference.error is not None:
            raise reference.error
        return reference.value

    def kill(self, actor: Actor) -> None:
        actor.is_lost = True

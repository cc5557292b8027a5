"""One stream of batches over the devices of a pool, from a single thread: the work is done by the devices' processes.

In: batches, drawn when a device has room for one. Out: their vectors, in order. A batch that a device fails on is tried
alone on another one; what fails there, too, is given back.
"""

import select
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fletcher_core.engines.dispatch import Load, choose, rooms
from fletcher_core.engines.isolated import EngineLost
from fletcher_core.engines.isolated.stream import Stream
from fletcher_core.engines.member import Cause, Member
from fletcher_core.engines.unanswered import BatchRefused
from fletcher_core.errors import EngineError
from fletcher_core.stop import Stop
from fletcher_core.tokens import TokenBatch

_WATCH_SECONDS = 0.02  # between two looks at whether to stop
# Refusals in a row, of batches that other devices computed, after which a device is under suspicion.
_REFUSALS = 3
# Batches that may be out, in times of what the devices have in flight: so far do the others go on while all wait for
# the slowest one's.
_WINDOW = 2

Float32 = npt.NDArray[np.float32]


@dataclass(eq=False)
class _Refusal:
    """A device failed on one of several batches; how many of them are `open`, computed by no other device yet."""

    member: Member
    error: EngineError
    open: int


@dataclass(eq=False)
class _Ticket:
    """A batch that is out: its `tokens` as computed, its `vectors` once they are there, who failed on it."""

    batch: TokenBatch
    tokens: int
    vectors: Float32 | None = None
    failed_on: list[Member] = field(default_factory=list)
    refusal: _Refusal | None = None
    failure: EngineError | None = None  # in the end


@dataclass(eq=False)
class _Lane:
    """The way through one device: its stream, and what is on it."""

    member: Member
    stream: Stream
    tickets: deque[_Ticket] = field(default_factory=deque)

    @property
    def tokens(self) -> int:
        return sum(ticket.tokens for ticket in self.tickets)


class PoolRun:
    """See above. `results` once; `close` ends what is under way.

    Args:
        members: the devices; those that are in are used, and those that come back.
        batches: the source.
        stop: looked at between batches and while waiting.
    """

    def __init__(self, members: Sequence[Member], batches: Iterable[TokenBatch], stop: Stop) -> None:
        self._members = members
        self._source = iter(batches)
        self._stop = stop
        self._is_over = False  # nothing is left to draw
        self._out: deque[_Ticket] = deque()  # drawn and not yielded, in order
        self._again: deque[_Ticket] = deque()  # to be tried alone
        self._lanes: dict[Member, _Lane] = {}
        self._suspected: dict[Member, _Refusal] = {}  # not cleared up: the device gets nothing new

    def results(self) -> Iterator[Float32]:
        """The vectors of each batch, in order.

        Raises:
            EngineLost: no device is left.
            BatchRefused: two devices failed on the oldest batch, or the only one did twice.
        """
        while True:
            while self._out and self._out[0].vectors is not None:
                yield self._out.popleft().vectors  # type: ignore[misc]
            if self._out and (failure := self._out[0].failure) is not None:
                raise BatchRefused(str(failure)) from failure
            if self._is_over and not self._out:
                break
            self._stop.check()
            self._see_who_is_in()
            self._try_alone()
            if not self._draw():
                self._wait()
            self._collect()
        for lane in list(self._lanes.values()):
            self._end(lane)

    def close(self) -> None:
        """Have all devices drop what they have."""
        lanes, interruption = list(self._lanes.values()), None
        self._lanes.clear()
        for lane in lanes:  # all at once: each takes its time
            try:
                lane.stream.interrupt()
            except EngineLost:
                lane.member.engine.close()
        for lane in lanes:
            member = lane.member
            member.in_flight = 0
            try:
                lane.stream.give_up()
            except BaseException as error:  # noqa: BLE001 - the others must be ended, too
                interruption = error
            if member.is_in and not member.engine.is_alive:
                said = f"engine {member.engine.name!r} on {member.engine.device} does not drop a stream: it hangs"
                member.leave(EngineLost(said), "lost")
        if interruption is not None:
            raise interruption

    def _see_who_is_in(self) -> None:
        """Raises EngineLost when nobody is."""
        for member in self._members:
            if member.is_in and not member.engine.is_alive:  # it was ended when a run was given up
                self._lose(member, EngineLost(f"the process of engine {member.engine.name!r} has ended"), "lost")
        if not any(member.is_in for member in self._members):
            said = "; ".join(f"device {member.label}: {member.last_failure or 'closed'}" for member in self._members)
            raise EngineLost(f"all {len(self._members)} devices are out: {said}")

    def _load(self, member: Member) -> Load:
        """As `choose` takes it."""
        lane = self._lanes.get(member)
        depth = member.engine.ahead + 1
        is_open = member.is_in and member not in self._suspected and (lane is None or not lane.stream.ended)
        if lane is None:
            return Load(0, 0, member.rate.value, depth, is_open)
        return Load(lane.stream.in_flight, lane.tokens, member.rate.value, depth, is_open)

    def _draw(self) -> bool:
        """Take a batch from the source and give it to a device; whether that was possible."""
        known = [member for member in self._members if member.is_in]
        depths = sum(member.engine.ahead + 1 for member in known)
        if self._is_over or len(self._out) >= _WINDOW * depths or not any(rooms([self._load(m) for m in known])):
            return False
        batch = next(self._source, None)
        if batch is None:
            self._is_over = True
            return False
        self._stop.check()
        ticket = _Ticket(batch, known[0].engine.batching.computed_tokens(batch.lengths))
        self._out.append(ticket)
        # Asked anew: drawing may take its time.
        chosen = choose([self._load(member) for member in known], ticket.tokens)
        if chosen is None:  # the pool was closed meanwhile
            self._again.append(ticket)
        else:
            self._give(known[chosen], ticket)
        return True

    def _give(self, member: Member, ticket: _Ticket, alone: bool = False) -> None:
        try:
            lane = self._lanes.get(member)
            if lane is None:
                lane = self._lanes[member] = _Lane(member, member.engine.stream())
            lane.tickets.append(ticket)
            member.in_flight += 1
            lane.stream.send(ticket.batch)
            if alone:
                lane.stream.end()
        except EngineLost as error:
            if member not in self._lanes:
                self._again.append(ticket)
            self._lose(member, error, "lost")

    def _try_alone(self) -> None:
        """Give each batch that a device failed on to one that has nothing else to do, so that it is to blame if that
        fails, too."""
        for ticket in list(self._again):
            there = [member for member in self._members if member.is_in]
            others = [member for member in there if member not in ticket.failed_on]
            candidates = others or there
            if idle := [member for member in candidates if member not in self._lanes]:
                self._again.remove(ticket)
                self._give(idle[0], ticket, alone=True)
            elif candidates:
                self._end_sending(min(candidates, key=lambda member: self._lanes[member].tokens))

    def _end_sending(self, member: Member) -> None:
        """Let a device come to an end of what it has."""
        lane = self._lanes[member]
        if lane.stream.ended:
            return
        try:
            lane.stream.end()
        except EngineLost as error:
            self._lose(member, error, "lost")

    def _wait(self) -> None:
        """Until a device says something, or for a moment."""
        for member, lane in list(self._lanes.items()):
            # With fewer batches an engine answers only when it knows that no more come.
            if self._is_over or lane.stream.in_flight < member.engine.ahead:
                self._end_sending(member)
        poll = select.poll()
        lanes = {lane.stream.fileno(): lane for lane in self._lanes.values() if lane.stream.in_flight}
        lanes.pop(-1, None)  # of one that was closed meanwhile: it is asked, and says so
        for descriptor in lanes:
            poll.register(descriptor, select.POLLIN)
        began = time.monotonic()
        ready = {descriptor for descriptor, _ in poll.poll(1000 * _WATCH_SECONDS)} if lanes else set()
        waited = time.monotonic() - began
        for descriptor, lane in lanes.items():
            if descriptor not in ready:
                try:
                    lane.stream.waited(waited)
                except EngineLost as error:
                    self._lose(lane.member, error, "lost")

    def _collect(self) -> None:
        """Take what has come."""
        for member, lane in list(self._lanes.items()):
            try:
                while lane.stream.in_flight:
                    before = lane.stream.in_flight
                    answer = lane.stream.receive(0.0)
                    if answer is not None:
                        self._accept(lane, answer.vectors.copy(), answer.seconds)
                    elif lane.stream.in_flight == before:
                        break
                if lane.stream.ended and not lane.stream.in_flight:
                    self._end(lane)
            except EngineLost as error:
                self._lose(member, error, "lost")
            except EngineError as error:
                self._refuse(lane, error)

    def _accept(self, lane: _Lane, vectors: Float32, seconds: float) -> None:
        ticket, member = lane.tickets.popleft(), lane.member
        member.in_flight -= 1
        ticket.vectors = vectors
        member.observe(ticket.tokens, seconds)
        member.refusals = 0
        if (refusal := ticket.refusal) is not None and refusal.member in self._suspected:
            refusal.open -= 1
            if not refusal.open:
                self._blame(refusal)

    def _blame(self, refusal: _Refusal) -> None:
        """All that a device failed on was computed in the end: the batches were not the cause."""
        member = refusal.member
        self._suspected.pop(member, None)
        member.refusals += 1
        if member.refusals >= _REFUSALS and member.is_in:
            self._lose(member, refusal.error, "refused")

    def _end(self, lane: _Lane) -> None:
        """The end of a device's stream, of which everything has come."""
        try:
            lane.stream.end()
            lane.stream.hear_over(lane.member.engine.supervision.hang_floor)
            self._lanes.pop(lane.member, None)  # not sooner: who is interrupted gives it up
        except EngineLost as error:
            self._lose(lane.member, error, "lost")

    def _refuse(self, lane: _Lane, error: EngineError) -> None:
        """A device failed on one of the batches that it has, and goes on: they are tried alone."""
        lane.stream.give_up()
        self._lanes.pop(lane.member)
        lane.member.in_flight = 0
        self._fail(lane, error, _Refusal(lane.member, error, len(lane.tickets)))

    def _lose(self, member: Member, error: EngineError, cause: Cause) -> None:
        """A device leaves the pool; what it had is tried alone on others."""
        lane = self._lanes.pop(member, None)
        self._suspected.pop(member, None)
        member.leave(error, cause)
        if lane is not None:
            self._fail(lane, error, None)

    def _fail(self, lane: _Lane, error: EngineError, refusal: _Refusal | None) -> None:
        for ticket in lane.tickets:
            if ticket.failed_on:  # it was alone this time
                ticket.failure = error
                if ticket.refusal is not None:
                    self._suspected.pop(ticket.refusal.member, None)
            else:
                ticket.refusal = refusal
                if refusal is not None:
                    self._suspected[lane.member] = refusal
                self._again.append(ticket)
            ticket.failed_on.append(lane.member)

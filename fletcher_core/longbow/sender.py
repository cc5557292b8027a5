"""A background thread that brings committed segments to Longbow, in order, without holding anybody up.

In: word that a segment was committed. Out: the ledger in the manifest moved on, and a report. While the server is down
the thread tries again when its circuit breaker says so; what it could not deliver stays in the store and goes the next
time.
"""

import threading
from dataclasses import dataclass
from types import TracebackType

from fletcher_core.errors import FletcherError, LongbowUnavailable
from fletcher_core.longbow.breaker import CircuitState
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.longbow.outbox import Outbox
from fletcher_core.longbow.retirement import Retirement
from fletcher_core.store.generation import Generation
from fletcher_core.telemetry.context import in_this_context
from fletcher_core.telemetry.stages import Busy, unwatched

_LOCK_WAIT = 0.05
_TRY_AGAIN = 0.1  # seconds after a failure while the circuit is closed, or another thread is trying the server
_INDEX_POLL = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_CLOSE_WHEN_DOWN = 0.5


@dataclass(frozen=True)
class SenderSettings:
    """How patient a sender is; times in seconds."""

    patience: float = 10.0
    """How long rows may take from the server's OK until they are readable, and an idle index until it holds them."""
    slow_down_pause: float = 1.0
    retire_stale: bool = True
    """Delete superseded rows on the server, so that other people's unfiltered scans do not show them."""
    raise_on_failure: bool = False
    """Whether `drain` raises what ended the sender for good, such as LongbowRejected; else the report says so."""


@dataclass(frozen=True)
class DeliveryReport:
    """Where a generation stands with one server.

    `segments` and `rows` count the whole generation by state ('pending', 'sending', 'sent', 'applied', 'searchable');
    everything from `puts` on is this sender's own work, bytes being Arrow buffer bytes.
    The three messages are empty when all is well: `unavailable`, the last attempt failed and another will follow;
    `rejected`, the sender has ended for good; `not_searchable`, the rows are there but the server's index lacks some.
    `circuit` is 'open' while the server is known to be down and is not tried, 'half-open' while one call tries it.
    """

    target: str
    dataset: str
    segments: dict[str, int]
    rows: dict[str, int]
    puts: int
    rows_sent: int
    bytes_sent: int
    rows_retired: int
    rows_kept: int
    unavailable: str = ""
    rejected: str = ""
    not_searchable: str = ""
    circuit: CircuitState = "closed"
    was_checked: bool = False
    """Whether the server was asked since the last word to the sender; the counts are the ledger's in any case."""

    @property
    def is_complete(self) -> bool:
        """Whether every committed segment was seen searchable."""
        return all(not count for state, count in self.segments.items() if state != "searchable")


class Sender:
    """Delivers one generation to one server. Its methods may be called from any thread.

    Use it as a context manager, or call `start` and `close`. The client stays the caller's. `busy` is told when "send"
    was at work.
    """

    def __init__(
        self,
        generation: Generation,
        client: LongbowClient,
        settings: SenderSettings | None = None,
        busy: Busy = unwatched,
    ) -> None:
        self.generation = generation
        self.settings = settings or SenderSettings()
        self._closing = threading.Event()
        self._breaker = client.breaker
        self._outbox = Outbox(
            generation,
            client,
            pause=self._closing.wait,
            patience=self.settings.patience,
            slow_down_pause=self.settings.slow_down_pause,
            busy=busy,
        )
        self._retirement = Retirement(generation, client, self._closing.is_set)
        self._thread = threading.Thread(target=in_this_context(self._run), name="longbow-sender", daemon=True)
        self._changed = threading.Condition()
        self._asked = 0  # counts notifications and drains
        self._settled = -1  # the last of them after which nothing was left to do, or the circuit was open
        self._connected = False
        self._index_checks = 0
        self._unavailable = ""
        self._failure: BaseException | None = None

    def start(self) -> "Sender":
        """Start the thread; it first looks what earlier runs have left to deliver."""
        self._thread.start()
        return self

    def notify(self) -> None:
        """Say that a segment was committed. Returns at once."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def drain(self, timeout: float | None = None) -> DeliveryReport:
        """Wait until everything is searchable, the server is known to be down, or `timeout` seconds pass.

        Raises the FletcherError that ended the sender for good, if the settings say so.
        """
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._changed.notify_all()
            if self._breaker.state != "open":
                self._changed.wait_for(lambda: self._settled >= ticket or self._has_ended(), timeout)
        failure = self._failure
        if failure is not None and (self.settings.raise_on_failure or not isinstance(failure, FletcherError)):
            raise failure
        return self.report()

    def report(self) -> DeliveryReport:
        """Where things stand now, without waiting."""
        outbox, traffic = self._outbox, self._outbox.traffic
        segments, rows = outbox.state_counts()
        circuit, unavailable = self._breaker.state, self._unavailable
        if circuit == "open" and not unavailable:  # another thread found out
            unavailable = self._breaker.last_failure
        return DeliveryReport(
            target=outbox.target,
            dataset=self.generation.name,
            segments=segments,
            rows=rows,
            puts=traffic.puts,
            rows_sent=traffic.rows,
            bytes_sent=traffic.bytes,
            rows_retired=self._retirement.retired,
            rows_kept=self._retirement.kept,
            unavailable=unavailable,
            rejected=str(self._failure or ""),
            not_searchable=outbox.stuck,
            circuit=circuit,
            was_checked=self._settled >= self._asked and not unavailable and self._failure is None,
        )

    def close(self, timeout: float = 5.0) -> None:
        """End the thread after the call that it is in, waiting at most `timeout` seconds for that.

        Where the server is known to be down, hardly: the calls that still hang there end by their deadlines.
        """
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            is_down = self._breaker.state != "closed"
            self._thread.join(min(timeout, _CLOSE_WHEN_DOWN) if is_down else timeout)

    def __enter__(self) -> "Sender":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has_ended(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._turn()
        except BaseException as failure:
            self._failure = failure
            if not isinstance(failure, FletcherError):
                raise
        finally:
            with self._changed:
                self._settled = self._asked
                self._changed.notify_all()

    def _turn(self) -> None:
        """One piece of work, then a wait until the next is due."""
        asked = self._asked
        try:
            pause = self._work(asked)
        except LongbowUnavailable as error:
            self._unavailable, self._connected = str(error), False
            self._sit_out()
            return
        self._unavailable = ""
        if pause is None:
            # Idle: the next word may come after the server was started again, so look at it anew then.
            self._connected = False
            self._settle(asked)
            self._wait(None, asked)
        elif pause:
            self._wait(pause, asked)

    def _work(self, asked: int) -> float | None:
        """Do what is to be done as of word number `asked`; seconds until more is due, None when nothing is left."""
        outbox = self._outbox
        if not self._connected:
            if not outbox.connect():
                return _LOCK_WAIT
            self._retirement.start_over()
            self._connected, self._index_checks = True, 0
        if waiting := outbox.undelivered():
            if not outbox.deliver(waiting):
                return _LOCK_WAIT
            self._index_checks = 0
            if self._closing.is_set():
                return 0.0
        if self.settings.retire_stale:
            for label in self._retirement.outstanding(outbox.applied()):
                if self._asked > asked or self._closing.is_set():  # rows to put go first
                    return 0.0
                self._retirement.retire(label, outbox.replaced.get(label))
        outbox.replaced.clear()
        if outbox.check_index():
            return None if not outbox.undelivered() else 0.0
        self._index_checks += 1
        return _INDEX_POLL[min(self._index_checks, len(_INDEX_POLL)) - 1]

    def _settle(self, asked: int) -> None:
        with self._changed:
            self._settled = max(self._settled, asked)
            self._changed.notify_all()

    def _wait(self, seconds: float | None, asked: int) -> None:
        """Sleep until the time is up, the sender closes, or there is word after number `asked`."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked > asked or self._closing.is_set(), seconds)

    def _sit_out(self) -> None:
        """After a failure: sleep until the breaker lets the next call through, or the sender closes."""
        breaker = self._breaker
        if breaker.state == "open":
            self._settle(self._asked)

            def is_due() -> bool:
                return self._closing.is_set() or breaker.state != "open"  # which it also is once it was reset

            with self._changed:
                self._changed.wait_for(is_due, breaker.seconds_until_try)
        else:
            self._closing.wait(_TRY_AGAIN)

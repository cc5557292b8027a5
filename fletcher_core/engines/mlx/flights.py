"""Batches on the device: sent up in pieces, as many as have room, run again in halves where memory was short.

All of it on the thread that owns the device.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fletcher_core.admission import Admission, Verdict
from fletcher_core.engines.mlx.batch import DeviceBatch, FilledBatch
from fletcher_core.engines.mlx.encoder import Encoder
from fletcher_core.engines.mlx.sizing import Sizes
from fletcher_core.engines.mlx.transfer import Transfer, Transfers
from fletcher_core.errors import EngineError
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.layers import LayerClock, observe_layers
from fletcher_core.tokens import TokenBatch

_LOG = logging.getLogger(__name__)

# GPU time of one piece of work: short enough for watchdogs, for the screen, and for a quick stop.
PIECE_SECONDS = 0.010
# A wait this long was for the device, not for Python.
_BLOCKED_SECONDS = 1e-4

Float32 = npt.NDArray[np.float32]


@dataclass(eq=False)
class Flight:
    """A batch on the device: kept until its vectors are out, in case it must run again."""

    batch: FilledBatch
    transfer: Transfer
    delivery: mx.array
    started: float
    alone: bool  # nothing else was on the device when it went up
    failure: Exception | None = None  # found while another batch waited for room


def submit(encoder: Encoder, transfer: Transfer, batch: FilledBatch, pieces: int = 1, stop: Stop = NEVER) -> mx.array:
    """Queue a batch on the device, at most two of its pieces ahead; returns the delivery of its vectors. A `sampled`
    one is computed at once, when the device has nothing else to do, and its layers are observed.

    Raises:
        RunCancelled: `stop` came between two pieces; nothing of the batch is on the device any more.
    """
    stop.check()
    if batch.sampled:
        _wait_for_all()
    clock = LayerClock(len(encoder.layers)) if batch.sampled else None
    uploaded = DeviceBatch.upload(batch, transfer)
    layers = len(encoder.layers)
    ahead: deque[mx.array] = deque()
    try:
        for step, x in enumerate(encoder.steps(uploaded)):
            if clock is not None:
                mx.eval(x)
                clock.mark()
                stop.check()
            elif pieces > 1 and step and step * pieces // layers != (step - 1) * pieces // layers:
                mx.async_eval(x)  # type: ignore[no-untyped-call]
                ahead.append(x)
                if len(ahead) > 1:
                    mx.eval(ahead.popleft())
                stop.check()
        stop.check()
        delivery = transfer.deliver(encoder.pool(x, uploaded))
        mx.async_eval(delivery)  # type: ignore[no-untyped-call]
        if clock is not None:
            mx.eval(delivery)
            clock.mark()
            observe_layers(clock.seconds)
    except BaseException:
        _wait_for_all()  # something may be queued that reads what is about to be given to another batch
        raise
    return delivery


def _wait_for_all() -> None:
    """Until the device has nothing to do; whatever fails meanwhile is for others to find."""
    try:
        mx.synchronize()
    except (RuntimeError, ValueError) as error:
        _LOG.warning("while waiting for the device after a failure: %s", error)


def vectors_of(encoder: Encoder, transfers: Transfers, batch: FilledBatch) -> Float32:
    """Vectors of one batch, start to end."""
    transfer = transfers.open()
    try:
        mx.eval(submit(encoder, transfer, batch))
        return np.array(transfer.fetch())
    finally:
        transfer.close()


class Flights:
    """What is on the device.

    Args:
        encoder, transfers: of the device.
        sizes: what the warm-up found; its budget learns from what runs.
        admission: asked for room.
        fill: a batch of tokens as the device gets it.
        device: its name, for messages.
    """

    def __init__(
        self,
        encoder: Encoder,
        transfers: Transfers,
        sizes: Sizes,
        admission: Admission,
        fill: Callable[[TokenBatch], FilledBatch],
        device: str,
    ):
        self.budget = sizes.budget
        self.admission = admission
        self.flying: deque[Flight] = deque()
        self._launched: set[Flight] = set()  # flying, or computed and not yet collected
        self.tokens_per_second = sizes.tokens_per_second
        self._encoder = encoder
        self._transfers = transfers
        self._fill = fill
        self._device = device
        self._last_done: float | None = None  # when the device ended its last batch, if that is known

    @property
    def tokens(self) -> int:
        """In flight."""
        return sum(flight.batch.tokens for flight in self.flying)

    def launch(self, batch: FilledBatch, stop: Stop) -> list[Flight]:
        """Send a batch up, in parts if the device has no room for all of it; returns before it is computed.

        Raises:
            RunCancelled: `stop` came.
            EngineError: the device failed.
        """
        while True:
            verdict = self.admission.admit(batch.tokens, self.tokens, divisible=len(batch.source) > 1)
            if verdict is not Verdict.WAIT:
                break
            oldest = self.flying[0]
            try:
                self._settle(oldest)
            except (RuntimeError, ValueError) as error:
                oldest.failure = error  # whoever collects it will run it again
        if verdict is Verdict.SPLIT:
            self.budget.halve(batch.tokens)
            return self._launch_halves(batch, stop)
        started, transfer = time.perf_counter(), self._transfers.open()
        try:
            delivery = self.submit(transfer, batch, stop)
        except BaseException as error:
            transfer.close()
            if isinstance(error, (RuntimeError, ValueError)):
                return self._recover(batch, error, stop)
            raise
        flight = Flight(batch, transfer, delivery, started, alone=not self.flying)
        self.flying.append(flight)
        self._launched.add(flight)
        return [flight]

    def submit(self, transfer: Transfer, batch: FilledBatch, stop: Stop) -> mx.array:
        """See `submit`; in pieces of about `PIECE_SECONDS`."""
        expected = batch.tokens / self.tokens_per_second if self.tokens_per_second else 0.0
        pieces = max(1, min(len(self._encoder.layers), round(expected / PIECE_SECONDS)))
        return submit(self._encoder, transfer, batch, pieces, stop)

    def collect(self, flights: list[Flight]) -> Float32:
        """Wait for the flights of a batch and take their vectors.

        Raises:
            EngineError: the device failed.
        """
        parts = [self._finish(flight) for flight in flights]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def drain(self) -> None:
        """Wait for what is on the device, and drop it and what nobody collected."""
        self.flying.clear()
        for flight in list(self._launched):
            try:
                mx.eval(flight.delivery)
            except (RuntimeError, ValueError) as error:
                _LOG.warning("work that nobody waits for any more failed on %s: %s", self._device, error)
            self._forget(flight)

    def _finish(self, flight: Flight) -> Float32:
        try:
            if flight.failure is not None:
                raise flight.failure
            self._settle(flight)
            return flight.transfer.fetch()
        except (RuntimeError, ValueError) as error:
            again = self._recover(flight.batch, error, NEVER)
            return np.concatenate([self._finish(part) for part in again])
        finally:
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        flight.transfer.close()
        self._launched.discard(flight)

    def _settle(self, flight: Flight) -> None:
        """Wait until a flight is computed; it is in flight no more, even if it failed."""
        flying = flight in self.flying
        if flying:
            self.flying.remove(flight)
        waiting = time.perf_counter()
        mx.eval(flight.delivery)
        if flying:
            self._time(flight, waiting, time.perf_counter())

    def _time(self, flight: Flight, waiting: float, done: float) -> None:
        """Learn from a batch whose beginning and end on the device are known.

        What was done before anybody waited for it ended nobody knows when: the host was the slower one.
        """
        began = flight.started if flight.alone else self._last_done
        ended_now = done - waiting > _BLOCKED_SECONDS
        self._last_done = done if ended_now else None
        if not ended_now or began is None:
            return
        seconds = done - max(flight.started, began)
        self.budget.observe(flight.batch.tokens, seconds)
        if 2 * flight.batch.tokens >= self.budget.current:  # small batches say little of the rate
            self.tokens_per_second += 0.1 * (flight.batch.tokens / seconds - self.tokens_per_second)

    def _recover(self, batch: FilledBatch, error: Exception, stop: Stop) -> list[Flight]:
        """Run a batch again in halves if the device had no memory for it; any other failure is the caller's."""
        in_flight, short = self.tokens, _is_out_of_memory(error)
        if short:
            self.admission.allocation_failed(batch.tokens + in_flight)
        if short and len(batch.source) == 1 and in_flight:
            return self.launch(batch, stop)  # alone, when the others are done
        if not short or len(batch.source) == 1:
            what = f"{len(batch.source)} texts of {batch.tokens} tokens"
            raise EngineError(f"MLX failed on {self._device} with {what}: {error}") from error
        self.budget.halve(batch.tokens)
        _LOG.warning("%s had no memory for %d tokens: trying again in halves (%s)", self._device, batch.tokens, error)
        return self._launch_halves(batch, stop)

    def _launch_halves(self, batch: FilledBatch, stop: Stop) -> list[Flight]:
        middle = len(batch.source) // 2
        parts = np.split(np.arange(len(batch.source)), [middle])
        return [flight for part in parts for flight in self.launch(self._fill(batch.source.take(part)), stop)]


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in ("malloc", "out of memory", "insufficient memory", "allocat"))

"""Several batches of a Flight stream on their way through the engine at once, so that it never waits for the network.

In: a reader of record batches. Out: the same batches in order, each with its vectors. A thread reads ahead, cuts each
batch into windows and submits them; how far ahead is bounded in texts and in bytes.

pyarrow cannot end a read that waits for the client, and a call must not return while one is open. So a failure is told
in two steps: every batch that was read is answered, the failure in its words, so that a client which waits for an
answer before it sends more is not left waiting; and when the open read has returned the failure is raised.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from types import TracebackType

import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.batching import WINDOW
from fletcher_core.errors import DeadlineExceeded, FletcherError, InputError, Overloaded, RunCancelled
from fletcher_core.service.batcher import Batcher
from fletcher_core.service.text_batch import TextRequest, checked_texts
from fletcher_core.service.vector_column import VectorColumn, VectorColumnBuilder
from fletcher_core.service.window import Kind
from fletcher_core.telemetry.context import in_this_context
from fletcher_core.telemetry.metrics import REJECTED
from fletcher_core.text_window import EmbeddedTexts

_LOOK_SECONDS = 0.05  # between two looks at whether the client is still there
_LEAST_WEIGHT = 64  # texts that the smallest window counts as, so that empty batches are bounded too


@dataclass(frozen=True)
class ReadLimits:
    """The most that a call takes and holds."""

    batch_rows: int = 65_536
    """Rows of one batch."""
    batch_bytes: int = 64 * 2**20
    """Bytes of one batch, as Arrow counts them."""
    ahead_texts: int = 3 * WINDOW
    """Texts of one call that are with the engine, or computed and not yet sent."""
    ahead_bytes: int = 64 * 2**20
    """Bytes of batches read and not yet answered, their vectors included; one batch is always taken."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """A batch as it came, and its vectors. `failure` is what ended the call before this batch was through: then all
    its vectors are null."""

    batch: pa.RecordBatch
    texts: pa.Array
    column: VectorColumn
    failure: FletcherError | None = None


@dataclass(frozen=True)
class _Window:
    """Texts of a batch from row `start` on; `future` is None where the batch has no rows."""

    batch: pa.RecordBatch
    texts: pa.Array
    start: int
    future: "Future[EmbeddedTexts] | None"
    weight: int
    batch_weight: int  # bytes to give back with the batch's last window; 0 for the others
    last: bool


class ReadAhead:
    """Iterate inside a `with` block, once. Raises what ended the call after the last batch.

    Args:
        reader: of the stream, not read from yet but for its schema.
        request: what to embed, and how.
        batcher: where the texts go.
        limits: see there.
        deadline: moment of `time.monotonic` after which nothing is computed; None for none.
        is_gone: whether the client has left: then the work is dropped.
        stopping: set when the service ends.
    """

    def __init__(
        self,
        reader: flight.MetadataRecordBatchReader,
        request: TextRequest,
        batcher: Batcher,
        limits: ReadLimits,
        deadline: float | None,
        is_gone: Callable[[], bool],
        stopping: threading.Event,
    ):
        self._reader = reader
        self._request = request
        self._batcher = batcher
        self._limits = limits
        self._deadline = deadline
        self._is_gone = is_gone
        self._stopping = stopping
        self._ended = threading.Event()  # nothing more is to be read
        self._windows: queue.SimpleQueue[_Window | BaseException | None] = queue.SimpleQueue()
        self._texts = _Room(limits.ahead_texts, self._ended)
        self._bytes = _Room(limits.ahead_bytes, self._ended)
        self._failure: FletcherError | None = None
        self._dimension = request.dimension or batcher.embedder.dimension
        self._thread = threading.Thread(target=in_this_context(self._read), name="fletcher-flight-read", daemon=True)

    def __enter__(self) -> "ReadAhead":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._ended.set()
        while self._thread.is_alive() or not self._windows.empty():
            self._thread.join(_LOOK_SECONDS)
            while not self._windows.empty():
                left = self._windows.get()
                if isinstance(left, _Window) and left.future is not None:
                    left.future.cancel()

    def fail(self, failure: FletcherError) -> None:
        """Compute and read no more; batches that were read come with this failure, which is raised after them."""
        if self._failure is None:
            self._failure = failure
        self._ended.set()

    def __iter__(self) -> Iterator[EmbeddedBatch]:
        builder: VectorColumnBuilder | None = None
        while (item := self._windows.get()) is not None:
            if isinstance(item, BaseException):
                raise self._failure or item
            if builder is None:
                embedder, request = self._batcher.embedder, self._request
                builder = VectorColumnBuilder(item.texts, embedder, request.query, request.dimension)
            if item.future is not None:
                result = self._result(item.future)
                if result is not None:
                    builder.accept(item.start, result)
            self._texts.give_back(item.weight)
            if item.last:
                failure = self._failure
                column = builder.finish() if failure is None else builder.nothing()
                builder = None
                yield EmbeddedBatch(item.batch, item.texts, column, failure)
                self._bytes.give_back(item.batch_weight)
        if self._failure is not None:
            raise self._failure

    def _result(self, future: "Future[EmbeddedTexts]") -> EmbeddedTexts | None:
        """None where the call has failed, or does so now."""
        while self._failure is None and not future.done():
            wait_for([future], _LOOK_SECONDS)
            if self._is_gone():
                REJECTED.labels("disconnected").inc()
                self.fail(RunCancelled("the client has left before all texts were embedded"))
            elif self._stopping.is_set():
                self.fail(RunCancelled("the service is stopping: send the texts to another one"))
            elif self._deadline is not None and time.monotonic() > self._deadline and not future.done():
                self.fail(_too_late())
        if self._failure is not None:
            future.cancel()
            return None
        try:
            return future.result()
        except CancelledError:
            self.fail(RunCancelled("the service dropped the texts: send them again"))
        except FletcherError as error:
            self.fail(error)
        return None

    def _read(self) -> None:
        """The thread's work. Whatever it raises is raised where the batches are taken."""
        try:
            while not self._ended.is_set():
                try:
                    chunk = self._reader.read_chunk()
                except StopIteration:
                    break
                except OSError as error:
                    raise pa.ArrowInvalid(f"the stream is damaged: {str(error)[:300]}") from None
                if chunk.data is not None and not self._ended.is_set():
                    self._submit_batch(chunk.data)
                del chunk
            self._windows.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that takes the batches
            self._windows.put(error)

    def _submit_batch(self, batch: pa.RecordBatch) -> None:
        rows, limits = batch.num_rows, self._limits
        if rows > limits.batch_rows:
            raise too_large(f"a batch has {rows} rows, over the limit of {limits.batch_rows}")
        if (size := batch.nbytes) > limits.batch_bytes:
            raise too_large(f"a batch has {size} bytes, over the limit of {limits.batch_bytes}")
        texts = checked_texts(batch, self._request.column)
        held = size + rows * self._dimension * 4
        self._bytes.take(held)
        starts = range(0, rows, WINDOW) or range(1)
        for start in starts:
            part = texts[start : start + WINDOW]
            weight = max(len(part), _LEAST_WEIGHT)
            self._texts.take(weight)
            future = self._submit(part, weight) if len(part) else None
            last = start == starts[-1]
            self._windows.put(_Window(batch, texts, start, future, weight, held if last else 0, last))

    def _submit(self, texts: pa.Array, weight: int) -> "Future[EmbeddedTexts] | None":
        """None where the call has failed: the batch is answered all the same."""
        kind: Kind = "queries" if self._request.query else "documents"
        while not self._ended.is_set():
            seconds = None
            if self._deadline is not None:
                seconds = self._deadline - time.monotonic()
                if seconds <= 0:
                    raise _too_late()
            try:
                return self._batcher.submit(texts, seconds=seconds, kind=kind)
            except Overloaded:
                # There is no room for more while our own texts fill it: wait for them. With none, it is the others'.
                if not self._texts.wait_for_return(weight, _LOOK_SECONDS):
                    raise
        return None


class _Room:
    """A bounded quantity. One who takes more than there is waits until nothing else is taken.

    Args:
        size: of the room.
        ended: ends all waiting.
    """

    def __init__(self, size: int, ended: threading.Event):
        self._size = size
        self._ended = ended
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, amount: int) -> None:
        with self._changed:
            while self._taken and self._taken + amount > self._size and not self._ended.is_set():
                self._changed.wait(_LOOK_SECONDS)
            self._taken += amount

    def give_back(self, amount: int) -> None:
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def wait_for_return(self, own: int, seconds: float) -> bool:
        """Wait a moment for others' part to be given back; False at once where only `own` is taken."""
        with self._changed:
            if self._taken <= own:
                return False
            self._changed.wait(seconds)
            return True


def too_large(what: str) -> InputError:
    """The refusal of a batch over a limit."""
    REJECTED.labels("too_large").inc()
    return InputError(f"{what} of this service: send smaller batches")


def _too_late() -> DeadlineExceeded:
    REJECTED.labels("deadline").inc()
    return DeadlineExceeded("the deadline passed before all texts were embedded: allow more time, or send fewer")

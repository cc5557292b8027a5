"""Requests of many callers in, batches filled across them to the one engine, each request's vectors out.

What arrives while the engine computes makes the next window: it is tokenized together, planned together, and shared
fairly, so that a request of thousands of texts does not hold up one of a single text. An idle engine waits a moment for
company. The queue is bounded in tokens, and in the seconds that they will take.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace

import pyarrow as pa

from fletcher_core.embedder import Embedder
from fletcher_core.errors import DeadlineExceeded, EngineError, FletcherError, Overloaded
from fletcher_core.service.settings import BatcherSettings
from fletcher_core.service.throughput import RATE_SHARE, Rate, Since
from fletcher_core.service.window import Kind, Part, Request, Window, encode, joined, nothing
from fletcher_core.telemetry.busy_seconds import EngineWork
from fletcher_core.telemetry.metrics import DEVICE_BUSY, PANICS, QUEUE_TOKENS, REJECTED
from fletcher_core.telemetry.stages import observed, unwatched
from fletcher_core.telemetry.tracing import batch_span, finished_span
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.tokenizers import TextEncoder
from fletcher_core.tokenizers.request import Column, as_column
from fletcher_core.tokens import Int64, TokenBatch

_LOG = logging.getLogger(__name__)

_busy = observed(unwatched)

# A window is as much as the engine computes in this time: what arrives meanwhile waits no longer than for that.
_WINDOW_SECONDS = 0.1
# English text in WordPiece has 4 to 5 bytes a token; what is admitted is estimated, what is computed is counted.
_BYTES_PER_TOKEN = 4
_SPECIAL_TOKENS = 2
# Seconds after which it is looked whether small batches were quicker than the rate.
_LONGEST_MEASURED = 1.0
# Of the time that a request has, what the queue ahead of it may take: estimates are that good.
_PATIENCE = 0.5


class Batcher:
    """See above. One thread feeds the engine; `submit` may be called from any thread.

    Args:
        embedder: what computes. Others may use it too, but their turn comes when nothing waits here.
        settings: how requests are put together.
    """

    def __init__(self, embedder: Embedder, settings: BatcherSettings | None = None) -> None:
        self.embedder = embedder
        self.settings = settings or BatcherSettings()
        self._lock = threading.Condition()
        self._queue: deque[Request] = deque()
        self._queued = 0  # tokens, of what is not taken yet
        self._flying = 0  # tokens, of what is taken and not back yet
        self._rate = Rate()
        self._tokens_per_estimated = 1.0
        self._closing = False
        self._fed = 0.0  # seconds spent on tokenizing and planning since the last batch came back
        self._open: dict[int, Window] = {}
        self._encoders: dict[Kind, TextEncoder] = {"documents": embedder.encoder, "queries": embedder.query_encoder}
        # Another engine may take seconds to load: whose vectors are sound does not wait for it.
        self._second_look = ThreadPoolExecutor(1, thread_name_prefix="fletcher-guard")
        self._thread = threading.Thread(target=self._serve, name="fletcher-batcher", daemon=True)
        QUEUE_TOKENS.set_function(lambda: self.queued_tokens)
        self._thread.start()

    @property
    def queued_tokens(self) -> int:
        """Estimated tokens that wait for the engine."""
        return self._queued

    @property
    def rate(self) -> float:
        """Tokens a second of late, 0 before there was a batch worth measuring."""
        return self._rate.per_second

    def submit(
        self, texts: "Column | TokenBatch", *, seconds: float | None = None, kind: Kind = "documents"
    ) -> "Future[EmbeddedTexts]":
        """Queue `texts`; the future gives their vectors, and for each text that has none what is wrong with it.

        Args:
            texts: list of str, an Arrow array of strings without nulls, or with `kind` "tokens" token sequences, which
                are taken as they are. At least one.
            seconds: in which the result is needed; the service's `request_timeout` by default.
            kind: which prompt is put before them: the one for documents or the one for queries.

        Returns:
            A future that raises DeadlineExceeded when the time is up before the engine took the texts, EngineError when
            the engine is broken. Cancelling it drops what the engine has not begun.

        Raises:
            InputError: an item is no str.
            Overloaded: the queue is full, longer than the time allows, or the service is ending.
        """
        seconds = self.settings.request_timeout if seconds is None else seconds
        request = self._request(texts, kind, seconds)
        if not len(request):
            request.future.set_result(nothing(self.embedder.dimension))
            return request.future
        with self._lock:
            self._admit(request, seconds)
            self._enqueue(request)
        request.future.add_done_callback(lambda future: self._forget(request) if future.cancelled() else None)
        return request.future

    def probe(self, seconds: float) -> "Future[EmbeddedTexts]":
        """The vectors of `Embedder.known_good` as the engine in use gives them, ahead of everything that waits."""
        request = replace(self._request(self.embedder.known_good, "tokens", seconds), is_probe=True)
        with self._lock:
            self._queue.appendleft(request)
            self._queued += request.left
            self._lock.notify()
        request.future.add_done_callback(lambda future: self._forget(request) if future.cancelled() else None)
        return request.future

    def close(self, seconds: float = 0.0) -> None:
        """Take nothing more, and end when what waits is computed, after `seconds` at the latest."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join(seconds)
        with self._lock:
            waiting, self._queue, self._queued = list(self._queue), deque(), 0
        if self._thread.is_alive():  # the engine hangs, or needs longer than there is
            waiting += [part.request for window in list(self._open.values()) for part in window.parts]
        for request in waiting:
            request.fail(Overloaded("the service is ending", 1.0))
        self._second_look.shutdown(wait=False)
        QUEUE_TOKENS.set_function(lambda: 0.0)

    def _request(self, texts: "Column | TokenBatch", kind: Kind, seconds: float) -> Request:
        if isinstance(texts, list):
            as_column(texts)  # an item that is no str would fail all requests that it is tokenized with
        size = self._estimate(texts)
        now = time.monotonic()
        return Request(texts, kind, size, now + seconds, Future(), now, left=size)

    def _estimate(self, texts: "Column | TokenBatch") -> int:
        if isinstance(texts, TokenBatch):
            return len(texts.ids)
        # A text of one piece is not longer than this, however long its bytes are.
        encoder = self.embedder.encoder
        most = encoder.max_length * _BYTES_PER_TOKEN if encoder.long_text != "chunk" else math.inf
        if isinstance(texts, list):
            size = sum(min(len(text), most) for text in texts)
        else:
            size = min(_bytes(texts), most * len(texts))
        return int(size) // _BYTES_PER_TOKEN + _SPECIAL_TOKENS * len(texts)

    def _admit(self, request: Request, seconds: float) -> None:
        if self._closing:
            REJECTED.labels("draining").inc()
            raise Overloaded("the service is ending: ask another one", 1.0)
        ahead = self._queued * self._tokens_per_estimated + self._flying
        wait = ahead / self.rate if self.rate else 0.0
        # How long the first one has waited says more than any estimate.
        first = next((waiting for waiting in self._queue if not waiting.future.done()), None)
        if first is not None:
            wait = max(wait, request.arrived - first.arrived)
        # An idle service takes any request: it would never have more room.
        if ahead and (self._queued + request.size > self.settings.max_queue_tokens or wait > _PATIENCE * seconds):
            REJECTED.labels("overload").inc()
            raise Overloaded(
                f"{self._queued} tokens wait for the engine, about {wait:.1f} s of work: try again later",
                max(1.0, math.ceil(wait / 2)),
            )

    def _enqueue(self, request: Request) -> None:
        self._queue.append(request)
        self._queued += request.left
        self._lock.notify()

    def _forget(self, request: Request) -> None:
        """Of a request that nobody waits for any more: give its room back now."""
        with self._lock:
            self._queued -= request.left
            request.left = 0
            with suppress(ValueError):  # all of it is taken
                self._queue.remove(request)

    # The batcher's thread.

    def _serve(self) -> None:
        while self._wait_for_requests():
            flying: deque[tuple[Window, Int64, int]] = deque()
            work = EngineWork(DEVICE_BUSY)
            try:
                with work, closing(self.embedder.compute(self._batches(flying, work))) as results:
                    self._fed = 0.0
                    asked = time.perf_counter()
                    since = Since(asked)
                    for computed in results:
                        work.answered()
                        window, rows, tokens = flying.popleft()
                        now = time.perf_counter()
                        self._learn(tokens, now - asked, len(flying), since)
                        began, self._fed = min(asked + self._fed, now), 0.0
                        _busy("compute", began, now)
                        finished_span("compute", began, now, parent=window.span, attributes={"tokens": tokens})
                        self._deliver(window, window.accept(rows, computed))
                        asked = time.perf_counter()
                    self._learn_that_it_is_quicker(since)
            except FletcherError as error:
                self._fail_open(error)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the next request gets its chance
                PANICS.labels("batcher").inc()
                _LOG.exception("the batcher failed")
                self._fail_open(_unplanned(error))
            with self._lock:
                self._open.clear()
                self._flying = 0

    def _wait_for_requests(self) -> bool:
        """Until there is something to compute; False when there will never be."""
        with self._lock:
            while not self._queue:
                if self._closing:
                    return False
                self._lock.wait()
            enough = self.embedder.engine.batching.token_budget
            until = time.monotonic() + self.settings.window_seconds
            # There may be nothing any more: who waits may give up.
            while self._queued < enough and not self._closing and not (self._queue and self._queue[0].is_probe):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._lock.wait(left)
        return True

    def _batches(self, flying: "deque[tuple[Window, Int64, int]]", work: EngineWork) -> Iterator[TokenBatch]:
        """Whatever waits, as long as something does: who draws this gets back what it computed when it ends."""
        while parts := self._take():
            began = time.perf_counter()
            span = batch_span("batch", [part.request.span for part in parts if part.first == 0])
            try:
                window = Window(parts, encode(parts, self._encoders), self.embedder, span)
            except BaseException as error:
                span.end()
                failure = error if isinstance(error, FletcherError) else _unplanned(error)
                for part in parts:
                    part.request.fail(failure)
                if failure is error:
                    continue
                raise
            now = time.perf_counter()
            self._fed += now - began
            _busy("tokenize", began, now)
            finished_span("tokenize", began, now, parent=span, attributes={"requests": len(parts)})
            self._open[id(window)] = window
            self._learn_estimate(parts, len(window.texts.sequences.ids))
            self._deliver(window, window.without_tokens())
            for rows in window.plan:
                batch = window.texts.sequences.take(rows)
                flying.append((window, rows, len(batch.ids)))
                with self._lock:
                    self._flying += len(batch.ids)
                work.sent()
                yield batch

    def _take(self) -> list[Part]:
        """The next window, in order of arrival, with as much of every request as is fair."""
        most = max(self.rate * _WINDOW_SECONDS, float(self.embedder.engine.batching.token_budget))
        parts: list[Part] = []
        late: list[Request] = []
        now = time.monotonic()
        with self._lock:
            waiting: list[Request] = []
            for request in self._queue:
                if request.future.done():
                    self._queued -= request.left  # none left of one that was cancelled
                    request.left = 0
                elif now > request.deadline:
                    late.append(request)
                    self._queued -= request.left
                    request.left = 0
                else:
                    waiting.append(request)
            self._queue.clear()
            # Of what a small request leaves of its share the larger ones get more: these come last.
            served = sorted(_first_ones(waiting, most), key=lambda request: (not request.is_probe, request.left))
            room = most
            for place, request in enumerate(served):
                # A probe goes whole: in parts it would take as many windows.
                share = math.inf if request.is_probe else max(0.0, room) / (len(served) - place)
                taken = self._part(request, share)
                parts.append(taken)
                room -= request.size * (taken.last - taken.first) / len(request)
            self._queue.extend(request for request in waiting if request.taken < len(request))
        came = time.perf_counter()
        for part in parts:
            if part.first == 0:
                waited = now - part.request.arrived
                _busy("queue", came - waited, came)
                finished_span("queue", came - waited, came, parent=part.request.span)
        for request in late:
            REJECTED.labels("deadline").inc()
            request.fail(DeadlineExceeded("the deadline passed while the request waited: allow more time"))
        return parts

    def _part(self, request: Request, share: float) -> Part:
        """As many texts of a request as `share` tokens are, at least one."""
        first, count = request.taken, len(request)
        texts = count - first if request.left <= share else max(1, int(share * count / request.size))
        request.taken = min(count, first + texts)
        left = 0 if request.taken == count else request.size * (count - request.taken) // count
        self._queued -= request.left - left
        request.left = left
        return Part(request, first, request.taken)

    def _learn(self, tokens: int, seconds: float, still_flying: int, since: "Since") -> None:
        with self._lock:
            self._flying = max(0, self._flying - tokens)
        # Small batches say nothing of what large ones take; the last ones of a stream were computed beside others.
        if still_flying and tokens >= self.embedder.engine.batching.token_budget / 2 and seconds > 0:
            self._rate.add(tokens, seconds)
            since.begin()
            return
        since.tokens += tokens
        if time.perf_counter() - since.began > _LONGEST_MEASURED:
            self._learn_that_it_is_quicker(since)

    def _learn_that_it_is_quicker(self, since: "Since") -> None:
        """Of what was too little for a measurement, at least that it took no longer: else a rate from a slow time, as
        of an engine that stood in, would turn away the very requests that could prove it wrong."""
        seconds = time.perf_counter() - since.began
        if self.rate and since.tokens > self.rate * seconds:
            self._rate.add(since.tokens, seconds)
        since.begin()

    def _learn_estimate(self, parts: list[Part], tokens: int) -> None:
        estimated = sum(part.request.size * (part.last - part.first) / len(part.request) for part in parts)
        self._tokens_per_estimated += RATE_SHARE * (tokens / max(estimated, 1.0) - self._tokens_per_estimated)

    def _deliver(self, window: Window, complete: Sequence[int]) -> None:
        for at in complete:
            part = window.parts[at]
            if part.request.future.done():
                continue
            if window.needs_second_look(at) and not part.request.is_probe:
                self._second_look.submit(self._look_again, window, at)
            else:
                self._complete(part, window.as_computed(at))
        if window.is_done and self._open.pop(id(window), None) is not None:
            window.span.end()

    def _look_again(self, window: Window, at: int) -> None:
        """Beside the batcher's thread: it may take seconds."""
        part = window.parts[at]
        began = time.perf_counter()
        try:
            finished = window.look_again(at, self.embedder)
        except FletcherError as error:
            part.request.fail(error)
        except BaseException as error:  # noqa: BLE001 - a caller waits
            PANICS.labels("batcher").inc()
            _LOG.exception("the second look at vectors failed")
            part.request.fail(_unplanned(error))
        else:
            now = time.perf_counter()
            _busy("guard", began, now)
            finished_span("guard", began, now, parent=part.request.span)
            self._complete(part, finished)

    def _complete(self, part: Part, finished: EmbeddedTexts) -> None:
        request = part.request
        with self._lock:
            request.parts[part.first] = finished
            request.done += part.last - part.first
            if request.done < len(request):
                return
        request.answer(joined([request.parts[first] for first in sorted(request.parts)]))

    def _fail_open(self, error: FletcherError) -> None:
        for window in list(self._open.values()):
            window.span.end()
            for part in window.parts:
                part.request.fail(error)


def _unplanned(error: BaseException) -> EngineError:
    return EngineError(f"an error that nobody planned for: {type(error).__name__}: {error}")


def _first_ones(waiting: list[Request], most: float) -> list[Request]:
    """The requests that came first, so many that one text of each is `most` tokens; at least one."""
    tokens = 0.0
    for place, request in enumerate(waiting):
        tokens += request.size / len(request)
        if tokens > most:
            return waiting[: place + 1]
    return waiting


def _bytes(texts: "pa.Array | pa.ChunkedArray") -> int:
    return sum(len(chunk) and chunk.nbytes for chunk in getattr(texts, "chunks", [texts]))

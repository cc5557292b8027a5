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
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from opentelemetry import trace
from opentelemetry.trace import Span

from fletcher_core.embed_call import Vectors
from fletcher_core.embedder import Embedder
from fletcher_core.engines.bisection import Computed
from fletcher_core.errors import DeadlineExceeded, EngineError, FletcherError, Overloaded
from fletcher_core.guard import sound_vectors
from fletcher_core.service.settings import BatcherSettings
from fletcher_core.telemetry.busy_seconds import EngineWork
from fletcher_core.telemetry.metrics import DEVICE_BUSY, PANICS, QUEUE_TOKENS, REJECTED
from fletcher_core.telemetry.stages import observed, unwatched
from fletcher_core.telemetry.tracing import batch_span, finished_span
from fletcher_core.text_window import EmbeddedTexts, finish_texts
from fletcher_core.tokenizers import EncodedTexts
from fletcher_core.tokenizers.request import Column, as_column
from fletcher_core.tokens import Int64, TokenBatch

_LOG = logging.getLogger(__name__)

Kind = Literal["documents", "queries", "tokens"]

_busy = observed(unwatched)

# A window is as much as the engine computes in this time: what arrives meanwhile waits no longer than for that.
_WINDOW_SECONDS = 0.1
# English text in WordPiece has 4 to 5 bytes a token; what is admitted is estimated, what is computed is counted.
_BYTES_PER_TOKEN = 4
_SPECIAL_TOKENS = 2
# How much of a new measurement goes into the rate; how much slower than before it may say the engine is, as a stall is
# no rate; and how many there must be before requests are turned away by it.
_RATE_SHARE = 0.05
_SLOWEST = 3.0
_FIRST_MEASUREMENTS = 8
# Seconds after which it is looked whether small batches were quicker than the rate.
_LONGEST_MEASURED = 1.0
# Of the time that a request has, what the queue ahead of it may take: estimates are that good.
_PATIENCE = 0.5


@dataclass(eq=False)
class _Request:
    """`texts` (or `tokens`, by `kind`) of one caller on their way; `size` estimated tokens of which `left` are not yet
    `taken`; `parts` are what came back, in order of `first`."""

    texts: "Column | TokenBatch"
    kind: Kind
    size: int
    deadline: float
    future: "Future[EmbeddedTexts]"
    arrived: float
    span: Span = field(default_factory=trace.get_current_span)
    is_probe: bool = False
    taken: int = 0
    left: int = 0
    parts: dict[int, EmbeddedTexts] = field(default_factory=dict)
    done: int = 0

    def __len__(self) -> int:
        return len(self.texts)


class _Rate:
    """Tokens over seconds, each a moving average: batches that come back two at a time do not count as quick ones."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._measurements = 0

    @property
    def per_second(self) -> float:
        """0 while it is not known."""
        return self._tokens / self._seconds if self._measurements >= _FIRST_MEASUREMENTS else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._measurements += 1
        if self._measurements == 1:
            self._tokens, self._seconds = float(tokens), seconds
        seconds = min(seconds, _SLOWEST * tokens * self._seconds / self._tokens)
        self._tokens += _RATE_SHARE * (tokens - self._tokens)
        self._seconds += _RATE_SHARE * (seconds - self._seconds)


@dataclass
class _Since:
    """Tokens that came back since `began`, of `time.perf_counter`, and were no measurement."""

    began: float
    tokens: int = 0

    def begin(self) -> None:
        self.began, self.tokens = time.perf_counter(), 0


@dataclass(frozen=True)
class _Part:
    """The texts from `first` up to `last` of a request."""

    request: _Request
    first: int
    last: int


class _Window:
    """What the engine computes together: parts of requests, encoded, and what came back of them."""

    def __init__(self, parts: list[_Part], texts: EncodedTexts, embedder: Embedder, span: Span) -> None:
        self.parts = parts
        self.texts = texts
        lengths = texts.sequences.lengths
        some = np.flatnonzero(lengths)  # invalid texts have no tokens, and the engine takes no empty ones
        batching = embedder.engine.batching
        self.plan: list[Int64] = [some[rows] for rows in batching.plan(lengths[some])] if len(some) else []
        self.padded_tokens = sum(batching.computed_tokens(lengths[rows]) for rows in self.plan)
        self.vectors = np.empty((len(lengths), embedder.dimension), np.float32)
        self.sound = np.zeros(len(lengths), bool)
        if len(some) < len(lengths):
            self.vectors[lengths == 0] = np.nan
        self.failed: dict[int, str] = {}
        # The first text and the first sequence of each part, and of each sequence its part.
        self.starts = np.concatenate([[0], np.cumsum([part.last - part.first for part in parts])])
        self.bounds = np.searchsorted(texts.text_of, self.starts)
        self._part_of = np.repeat(np.arange(len(parts)), np.diff(self.bounds))
        self._remaining = np.bincount(self._part_of[some], minlength=len(parts))
        self._normalized = embedder.guard.normalized
        self.span = span

    @property
    def is_done(self) -> bool:
        """Whether all of it has come back."""
        return not self._remaining.any()

    def without_tokens(self) -> list[int]:
        """Parts of which nothing goes to the engine."""
        return np.flatnonzero(self._remaining == 0).tolist()

    def accept(self, rows: Int64, computed: Computed) -> list[int]:
        """Take what came back for the sequences `rows`; the parts that are complete by it."""
        self.vectors[rows] = computed.vectors
        self.sound[rows] = sound_vectors(computed.vectors, self._normalized)
        for row, reason in computed.failed.items():
            self.failed[int(rows[row])] = reason
        before = self._remaining > 0
        self._remaining -= np.bincount(self._part_of[rows], minlength=len(self.parts))
        return np.flatnonzero(before & (self._remaining == 0)).tolist()


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
        self._queue: deque[_Request] = deque()
        self._queued = 0  # tokens, of what is not taken yet
        self._flying = 0  # tokens, of what is taken and not back yet
        self._rate = _Rate()
        self._tokens_per_estimated = 1.0
        self._closing = False
        self._fed = 0.0  # seconds spent on tokenizing and planning since the last batch came back
        self._open: dict[int, _Window] = {}
        self._encoders = {"documents": embedder.encoder, "queries": embedder.query_encoder}
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
            request.future.set_result(_nothing(self.embedder.dimension))
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
            _fail(request, Overloaded("the service is ending", 1.0))
        self._second_look.shutdown(wait=False)
        QUEUE_TOKENS.set_function(lambda: 0.0)

    def _request(self, texts: "Column | TokenBatch", kind: Kind, seconds: float) -> _Request:
        if isinstance(texts, list):
            as_column(texts)  # an item that is no str would fail all requests that it is tokenized with
        size = self._estimate(texts)
        now = time.monotonic()
        return _Request(texts, kind, size, now + seconds, Future(), now, left=size)

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

    def _admit(self, request: _Request, seconds: float) -> None:
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

    def _enqueue(self, request: _Request) -> None:
        self._queue.append(request)
        self._queued += request.left
        self._lock.notify()

    def _forget(self, request: _Request) -> None:
        """Of a request that nobody waits for any more: give its room back now."""
        with self._lock:
            self._queued -= request.left
            request.left = 0
            with suppress(ValueError):  # all of it is taken
                self._queue.remove(request)

    # The batcher's thread.

    def _serve(self) -> None:
        while self._wait_for_requests():
            flying: deque[tuple[_Window, Int64, int]] = deque()
            work = EngineWork(DEVICE_BUSY)
            try:
                with work, closing(self.embedder.compute(self._batches(flying, work))) as results:
                    self._fed = 0.0
                    asked = time.perf_counter()
                    since = _Since(asked)
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

    def _batches(self, flying: "deque[tuple[_Window, Int64, int]]", work: EngineWork) -> Iterator[TokenBatch]:
        """Whatever waits, as long as something does: who draws this gets back what it computed when it ends."""
        while parts := self._take():
            began = time.perf_counter()
            span = batch_span("batch", [part.request.span for part in parts if part.first == 0])
            try:
                window = _Window(parts, self._encode(parts), self.embedder, span)
            except BaseException as error:
                span.end()
                failure = error if isinstance(error, FletcherError) else _unplanned(error)
                for part in parts:
                    _fail(part.request, failure)
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

    def _take(self) -> list[_Part]:
        """The next window, in order of arrival, with as much of every request as is fair."""
        most = max(self.rate * _WINDOW_SECONDS, float(self.embedder.engine.batching.token_budget))
        parts: list[_Part] = []
        late: list[_Request] = []
        now = time.monotonic()
        with self._lock:
            waiting: list[_Request] = []
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
            _fail(request, DeadlineExceeded("the deadline passed while the request waited: allow more time"))
        return parts

    def _part(self, request: _Request, share: float) -> _Part:
        """As many texts of a request as `share` tokens are, at least one."""
        first, count = request.taken, len(request)
        texts = count - first if request.left <= share else max(1, int(share * count / request.size))
        request.taken = min(count, first + texts)
        left = 0 if request.taken == count else request.size * (count - request.taken) // count
        self._queued -= request.left - left
        request.left = left
        return _Part(request, first, request.taken)

    def _encode(self, parts: list[_Part]) -> EncodedTexts:
        """The texts of all parts in their order; neighbours that are read alike together."""
        encoded: list[EncodedTexts] = []
        start = 0
        while start < len(parts):
            kind, stop = parts[start].request.kind, start + 1
            while stop < len(parts) and parts[stop].request.kind == kind:
                stop += 1
            slices = [_slice(part) for part in parts[start:stop]]
            lists = [texts for texts in slices if isinstance(texts, list)]
            if len(lists) == len(slices):
                encoded.append(self._encoders[kind].encode([text for texts in lists for text in texts]))
            else:
                encoded += [
                    _as_encoded(texts) if isinstance(texts, TokenBatch) else self._encoders[kind].encode(texts)
                    for texts in slices
                ]
            start = stop
        return EncodedTexts.joined(encoded)

    def _learn(self, tokens: int, seconds: float, still_flying: int, since: "_Since") -> None:
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

    def _learn_that_it_is_quicker(self, since: "_Since") -> None:
        """Of what was too little for a measurement, at least that it took no longer: else a rate from a slow time, as
        of an engine that stood in, would turn away the very requests that could prove it wrong."""
        seconds = time.perf_counter() - since.began
        if self.rate and since.tokens > self.rate * seconds:
            self._rate.add(since.tokens, seconds)
        since.begin()

    def _learn_estimate(self, parts: list[_Part], tokens: int) -> None:
        estimated = sum(part.request.size * (part.last - part.first) / len(part.request) for part in parts)
        self._tokens_per_estimated += _RATE_SHARE * (tokens / max(estimated, 1.0) - self._tokens_per_estimated)

    def _deliver(self, window: _Window, complete: Sequence[int]) -> None:
        for at in complete:
            part = window.parts[at]
            if part.request.future.done():
                continue
            rows = slice(int(window.bounds[at]), int(window.bounds[at + 1]))
            is_whole = rows.stop - rows.start == part.last - part.first  # no text was cut into chunks
            if part.request.is_probe or (is_whole and window.sound[rows].all()):
                self._complete(part, self._as_computed(window, at))
            else:
                self._second_look.submit(self._look_again, window, at)
        if window.is_done and self._open.pop(id(window), None) is not None:
            window.span.end()

    def _as_computed(self, window: _Window, at: int) -> EmbeddedTexts:
        """A part whose sequences are its texts."""
        rows = slice(int(window.bounds[at]), int(window.bounds[at + 1]))
        texts = slice(int(window.starts[at]), int(window.starts[at + 1]))
        counts = window.texts.token_counts[texts]
        tokens = int(window.texts.sequences.lengths[rows].sum())
        failed = {row - rows.start: said for row, said in window.failed.items() if rows.start <= row < rows.stop}
        vectors = window.vectors[rows]
        if 2 * len(vectors) < len(window.vectors):  # a view would keep all of the window for as long as it is kept
            vectors = vectors.copy()
        return EmbeddedTexts(vectors, counts, window.texts.cut[texts], window.sound[rows], (), failed, tokens, tokens)

    def _look_again(self, window: _Window, at: int) -> None:
        """A part with texts that are in chunks, are invalid, or have no sound vector."""
        part = window.parts[at]
        began = time.perf_counter()
        try:
            rows = slice(int(window.bounds[at]), int(window.bounds[at + 1]))
            texts = window.texts.part(int(window.starts[at]), int(window.starts[at + 1]))
            failed = {row - rows.start: said for row, said in window.failed.items() if rows.start <= row < rows.stop}
            finished = finish_texts(
                texts,
                window.vectors[rows].copy(),
                window.sound[rows].copy(),
                failed,
                int(texts.sequences.lengths.sum()),
                self.embedder.guard,
            )
        except FletcherError as error:
            _fail(part.request, error)
        except BaseException as error:  # noqa: BLE001 - a caller waits
            PANICS.labels("batcher").inc()
            _LOG.exception("the second look at vectors failed")
            _fail(part.request, _unplanned(error))
        else:
            now = time.perf_counter()
            _busy("guard", began, now)
            finished_span("guard", began, now, parent=part.request.span)
            self._complete(part, finished)

    def _complete(self, part: _Part, finished: EmbeddedTexts) -> None:
        request = part.request
        with self._lock:
            request.parts[part.first] = finished
            request.done += part.last - part.first
            if request.done < len(request):
                return
        _answer(request, _joined([request.parts[first] for first in sorted(request.parts)]))

    def _fail_open(self, error: FletcherError) -> None:
        for window in list(self._open.values()):
            window.span.end()
            for part in window.parts:
                _fail(part.request, error)


def _answer(request: _Request, result: EmbeddedTexts) -> None:
    with suppress(InvalidStateError):  # it was cancelled meanwhile
        request.future.set_result(result)


def _fail(request: _Request, error: FletcherError) -> None:
    with suppress(InvalidStateError):
        request.future.set_exception(error)


def _unplanned(error: BaseException) -> EngineError:
    return EngineError(f"an error that nobody planned for: {type(error).__name__}: {error}")


def _first_ones(waiting: list[_Request], most: float) -> list[_Request]:
    """The requests that came first, so many that one text of each is `most` tokens; at least one."""
    tokens = 0.0
    for place, request in enumerate(waiting):
        tokens += request.size / len(request)
        if tokens > most:
            return waiting[: place + 1]
    return waiting


def _bytes(texts: "pa.Array | pa.ChunkedArray") -> int:
    return sum(len(chunk) and chunk.nbytes for chunk in getattr(texts, "chunks", [texts]))


def _slice(part: _Part) -> "Column | TokenBatch":
    texts = part.request.texts
    if isinstance(texts, TokenBatch):
        return texts.take(np.arange(part.first, part.last))
    return texts[part.first : part.last]


def _as_encoded(tokens: TokenBatch) -> EncodedTexts:
    lengths = tokens.lengths.astype(np.int32)
    return EncodedTexts(tokens, np.arange(len(tokens)), lengths, np.zeros(len(tokens), bool))


def _nothing(dimension: int) -> EmbeddedTexts:
    none: npt.NDArray[np.bool_] = np.zeros(0, bool)
    vectors: Vectors = np.zeros((0, dimension), np.float32)
    return EmbeddedTexts(vectors, np.zeros(0, np.int32), none, none, (), {}, 0, 0)


def _joined(parts: list[EmbeddedTexts]) -> EmbeddedTexts:
    if len(parts) == 1:
        return parts[0]
    before = np.concatenate([[0], np.cumsum([len(part.vectors) for part in parts])[:-1]]).tolist()
    return EmbeddedTexts(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.token_counts for part in parts]),
        np.concatenate([part.cut for part in parts]),
        np.concatenate([part.sound for part in parts]),
        tuple(
            replace(bad, row=bad.row + rows) for part, rows in zip(parts, before, strict=True) for bad in part.invalid
        ),
        {row + rows: said for part, rows in zip(parts, before, strict=True) for row, said in part.failed.items()},
        sum(part.computed_tokens for part in parts),
        sum(part.padded_tokens for part in parts),
        sum(part.retried for part in parts),
    )

"""The GPU engine: packed batches through MLX, on Metal or CUDA, from one thread that owns all of MLX.

A batch is padded to a bucket of tokens, never by sequence; up to three batches are in flight, so that the device
computes one while the host prepares the next and copies the last one out. Work goes up in pieces of about 10 ms.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from fletcher_kernels.attention import TILE_ROWS
from fletcher_kernels.selection import KERNEL_NAMES, OFF, KernelSet, switched_off

from fletcher_core.admission import Admission, Verdict
from fletcher_core.batching import plan_buckets
from fletcher_core.engines.engine import Precision
from fletcher_core.engines.mlx.batch import DeviceBatch, FilledBatch
from fletcher_core.engines.mlx.device import MlxMemory, device_name, gpu_dialect
from fletcher_core.engines.mlx.encoder import Encoder
from fletcher_core.engines.mlx.sizing import warm_up
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.models import ModelPackage, Weights
from fletcher_core.stop import NEVER, Stop
from fletcher_core.token_budget import round_up, token_buckets
from fletcher_core.tokens import Int64, TokenBatch, cumulative

_LOG = logging.getLogger(__name__)
_DTYPES = {"fp16": mx.float16, "bf16": mx.bfloat16, "fp32": mx.float32}

# GPU time of one piece of work: short enough for watchdogs, for the screen, and for a quick stop.
PIECE_SECONDS = 0.010
# And of a batch, in as many pieces: larger products run nearer to the device's peak.
BATCH_SECONDS = 0.040
# The one shape of the batch-invariant mode, in tokens.
INVARIANT_TOKENS = 4096
_LARGEST_BUCKET = {"metal": 32768, "cuda": 131072, None: 1024}
# A wait this long was for the device, not for Python.
_BLOCKED_SECONDS = 1e-4

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Flight:
    """A batch on the device: kept until its vectors are out, in case it must run again."""

    batch: FilledBatch
    vectors: mx.array
    started: float
    alone: bool  # nothing else was on the device when it went up
    failure: Exception | None = None  # found while another batch waited for room


class MlxEngine:
    """Runs an encoder on the GPU that MLX finds.

    Args:
        package: architecture and pooling.
        weights: the checkpoint.
        normalize: scale each vector to unit length.
        dimension: keep this many leading elements of each vector.
        precision: "auto" takes float16, and bfloat16 for a checkpoint that overflows in it; "fp32" uses no kernel of
            ours for attention.
        batch_invariant: every batch has the same shape, so that a text's vector is the same to the last bit in
            whatever batch it runs; partly filled batches cost as much as full ones.
        on_cpu: run MLX's CPU backend, for tests: plain operations, very slow.

    Attributes: `kernels` (which run and which are replaced), `budget`, `buckets`.

    Raises:
        ConfigError: unknown precision, or an unknown kernel in FLETCHER_KERNELS_OFF.
        EngineError: MLX cannot run the model on this device.
    """

    name = "mlx"

    def __init__(
        self,
        package: ModelPackage,
        weights: Weights,
        *,
        normalize: bool,
        dimension: int,
        precision: Precision = "auto",
        batch_invariant: bool = False,
        on_cpu: bool = False,
    ):
        if precision not in get_args(Precision):
            raise ConfigError(f"precision is {precision!r}; choose one of {', '.join(get_args(Precision))}")
        self.dimension = dimension
        self.batch_invariant = batch_invariant
        self._package = package
        self._normalize = normalize
        self._on_cpu = on_cpu
        # MLX's streams belong to the thread that made them: all of MLX happens on this one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fletcher-gpu")
        self._flying: deque[_Flight] = deque()
        self._last_done: float | None = None  # when the device ended its last batch, if that is known
        self._tokens_per_second = 0.0
        self._ident = self._thread.submit(threading.get_ident).result()
        self._call(self._load, weights, precision)

    def plan(self, lengths: npt.NDArray[np.integer]) -> list[Int64]:
        """See `Engine.plan`: longest first, each batch filled to a bucket as well as its sequences allow."""
        return plan_buckets(lengths, self.budget.current, self.buckets)

    def computed_tokens(self, lengths: npt.NDArray[np.integer]) -> int:
        """See `Engine.computed_tokens`."""
        return round_up(int(lengths.sum()), self.buckets)

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[npt.NDArray[np.float32]]:
        """See `Engine.run`."""
        waiting: deque[Future[list[_Flight]]] = deque()
        try:
            for batch in batches:
                waiting.append(self._thread.submit(self._launch, self._fill(batch), stop))
                if len(waiting) > 2:
                    yield self._call(self._collect, waiting.popleft())
            while waiting:
                yield self._call(self._collect, waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()
            self._call(self._drain)

    def _fill(self, batch: TokenBatch) -> FilledBatch:
        return FilledBatch.fill(batch, round_up(len(batch.ids), self.buckets), self._tile_rows)

    def hidden_states(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """The last block's output, float32 [T, hidden size]: for tests against a reference."""

        def compute() -> npt.NDArray[np.float32]:
            *_, x = self._encoder.steps(DeviceBatch.upload(self._fill(batch)))
            return np.array(x.astype(mx.float32))[: len(batch.ids)]

        return self._call(compute)

    def close(self) -> None:
        """End the engine's thread; the engine cannot be used after that."""
        self._thread.shutdown()

    def _call(self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if threading.get_ident() == self._ident:  # an abandoned iterator that is collected on the engine's thread
            return work(*args, **kwargs)
        return self._thread.submit(work, *args, **kwargs).result()

    # From here on everything runs on the engine's thread.

    def _load(self, weights: Weights, precision: Precision) -> None:
        dialect = None if self._on_cpu else gpu_dialect()
        if dialect is None:
            mx.set_default_device(mx.cpu)
        off = switched_off()
        if unknown := sorted(set(off) - set(KERNEL_NAMES)):
            raise ConfigError(f"{OFF} names {', '.join(unknown)}; the kernels are {', '.join(KERNEL_NAMES)}")
        try:
            self.device = device_name(dialect)
            self.memory = MlxMemory(dialect)
            # Query tiles of the fallback have no meaning to it: it only needs to know the sequences.
            self._tile_rows = TILE_ROWS[dialect or "metal"]
            for name in ("fp16", "bf16") if precision == "auto" else (precision,):
                self.precision = name
                # Anew for each: what overflows float16 must not be held against a kernel in bfloat16.
                self.kernels = KernelSet(dialect, off)
                self._encoder = Encoder(
                    self._package.architecture,
                    weights,
                    _DTYPES[name],
                    self.kernels,
                    pooling=self._package.pooling,
                    normalize=self._normalize,
                    dimension=self.dimension,
                )
                if self._is_finite():
                    break
            else:
                raise EngineError(f"{self._package.name!r} gives no finite vectors in {self.precision}: try 'fp32'")
            self._choose_sizes(_LARGEST_BUCKET[dialect])
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"MLX cannot run {self._package.name!r} on {self.device}: {error}") from error

    def _is_finite(self) -> bool:
        """Run random tokens at the longest length, which also builds and checks the kernels."""
        architecture = self._package.architecture
        length = min(self._package.max_length, 512)
        ids = np.random.default_rng(0).integers(0, architecture.vocab_size, 2 * length + 3).astype(np.int32)
        batch = TokenBatch(ids, cumulative(np.array([length, 3, length])))
        filled = FilledBatch.fill(batch, round_up(len(ids), (64,)), self._tile_rows)
        return bool(np.isfinite(self._vectors(filled)).all())

    def _choose_sizes(self, largest: int) -> None:
        a = self._package.architecture
        prior = 2 * a.hidden_size * 14 + 4 * a.intermediate_size * (3 if a.gated else 2)
        self._admission = Admission(self.memory, float(prior))
        candidates = token_buckets(largest)
        if self.batch_invariant:
            candidates = (max(INVARIANT_TOKENS, -(-self._package.max_length // 64) * 64),)
        sizes = warm_up(candidates, self._warm_up, self._admission, BATCH_SECONDS)
        self.buckets, self.budget, self._tokens_per_second = sizes.buckets, sizes.budget, sizes.tokens_per_second
        self.memory.limit_cache(max(1 << 28, 2 * int(self._admission.estimate(self.buckets[-1]))))

    def _warm_up(self, bucket: int) -> list[float]:
        """Seconds of some runs of a full bucket."""
        length = max(1, min(self._package.max_length, 64, bucket))
        lengths = np.full(bucket // length, length)
        ids = np.random.default_rng(1).integers(0, self._package.architecture.vocab_size, int(lengths.sum()))
        batch = FilledBatch.fill(TokenBatch(ids.astype(np.int32), cumulative(lengths)), bucket, self._tile_rows)
        with self._admission.measuring(bucket):
            self._vectors(batch)
        seconds: list[float] = []
        while len(seconds) < 3 and (not seconds or sum(seconds) < 0.1):
            started = time.perf_counter()
            self._vectors(batch)
            seconds.append(time.perf_counter() - started)
        return seconds

    def _launch(self, batch: FilledBatch, stop: Stop) -> list[_Flight]:
        """Send a batch up, in parts if the device has no room for all of it; returns before it is computed."""
        while True:
            in_flight = sum(flight.batch.tokens for flight in self._flying)
            verdict = self._admission.admit(batch.tokens, in_flight, divisible=len(batch.source) > 1)
            if verdict is not Verdict.WAIT:
                break
            oldest = self._flying[0]
            try:
                self._settle(oldest)
            except (RuntimeError, ValueError) as error:
                oldest.failure = error  # whoever collects it will run it again
        if verdict is Verdict.SPLIT:
            self.budget.halve(batch.tokens)
            return self._launch_halves(batch, stop)
        started = time.perf_counter()
        try:
            vectors = self._submit(batch, stop)
        except (RuntimeError, ValueError) as error:
            return self._recover(batch, error, stop)
        flight = _Flight(batch, vectors, started, alone=not self._flying)
        self._flying.append(flight)
        return [flight]

    def _submit(self, batch: FilledBatch, stop: Stop) -> mx.array:
        """Queue the batch on the device, at most two pieces of about `PIECE_SECONDS` ahead of it."""
        stop.check()
        uploaded = DeviceBatch.upload(batch)
        layers = self._package.architecture.layers
        expected = batch.tokens / self._tokens_per_second if self._tokens_per_second else 0.0
        pieces = max(1, min(layers, round(expected / PIECE_SECONDS)))
        ahead: deque[mx.array] = deque()
        for step, x in enumerate(self._encoder.steps(uploaded)):
            if pieces > 1 and step and step * pieces // layers != (step - 1) * pieces // layers:
                mx.async_eval(x)  # type: ignore[no-untyped-call]
                ahead.append(x)
                if len(ahead) > 1:
                    mx.eval(ahead.popleft())
                stop.check()
        stop.check()
        vectors = self._encoder.pool(x, uploaded)
        mx.async_eval(vectors)  # type: ignore[no-untyped-call]
        return vectors

    def _collect(self, launched: "Future[list[_Flight]]") -> npt.NDArray[np.float32]:
        """Wait for a batch and copy its vectors out."""
        parts = [self._finish(flight) for flight in launched.result()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _finish(self, flight: _Flight) -> npt.NDArray[np.float32]:
        try:
            if flight.failure is not None:
                raise flight.failure
            self._settle(flight)
            # On unified memory this is the device's own buffer.
            return np.asarray(flight.vectors)
        except (RuntimeError, ValueError) as error:
            again = self._recover(flight.batch, error, NEVER)
            return np.concatenate([self._finish(part) for part in again])

    def _settle(self, flight: _Flight) -> None:
        """Wait until a flight is computed; it is in flight no more, even if it failed."""
        flying = flight in self._flying
        if flying:
            self._flying.remove(flight)
        waiting = time.perf_counter()
        mx.eval(flight.vectors)
        if flying:
            self._time(flight, waiting, time.perf_counter())

    def _time(self, flight: _Flight, waiting: float, done: float) -> None:
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
            self._tokens_per_second += 0.1 * (flight.batch.tokens / seconds - self._tokens_per_second)

    def _recover(self, batch: FilledBatch, error: Exception, stop: Stop) -> list[_Flight]:
        """Run a batch again in halves if the device had no memory for it; any other failure is the caller's."""
        in_flight = sum(flight.batch.tokens for flight in self._flying)
        if _is_out_of_memory(error) and len(batch.source) == 1 and in_flight:
            self._admission.allocation_failed(batch.tokens + in_flight)
            return self._launch(batch, stop)  # alone, when the others are done
        if not _is_out_of_memory(error) or len(batch.source) == 1:
            what = f"{len(batch.source)} texts of {batch.tokens} tokens"
            raise EngineError(f"MLX failed on {self.device} with {what}: {error}") from error
        self._admission.allocation_failed(batch.tokens + in_flight)
        self.budget.halve(batch.tokens)
        _LOG.warning("%s had no memory for %d tokens: trying again in halves (%s)", self.device, batch.tokens, error)
        return self._launch_halves(batch, stop)

    def _launch_halves(self, batch: FilledBatch, stop: Stop) -> list[_Flight]:
        middle = len(batch.source) // 2
        parts = np.split(np.arange(len(batch.source)), [middle])
        return [flight for part in parts for flight in self._launch(self._fill(batch.source.take(part)), stop)]

    def _vectors(self, batch: FilledBatch) -> npt.NDArray[np.float32]:
        """Vectors of one batch, start to end."""
        vectors = self._submit(batch, NEVER)
        mx.eval(vectors)
        return np.array(vectors)

    def _drain(self) -> None:
        """Wait for what is on the device and drop it."""
        while self._flying:
            try:
                mx.eval(self._flying.popleft().vectors)
            except (RuntimeError, ValueError) as error:
                _LOG.warning("work that nobody waits for any more failed on %s: %s", self.device, error)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in ("malloc", "out of memory", "insufficient memory", "allocat"))

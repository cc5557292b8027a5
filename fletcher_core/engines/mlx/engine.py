"""The GPU engine: packed batches through MLX, on Metal or CUDA, from one thread that owns all of MLX.

A batch is padded to a bucket of tokens, never by sequence; up to three batches are in flight, so that the device
computes one while the host prepares the next and copies the last one out. Work goes up in pieces of about 10 ms.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from fletcher_kernels.attention import TILE_ROWS
from fletcher_kernels.selection import KERNEL_NAMES, OFF, KernelSet, switched_off

from fletcher_core.admission import Admission
from fletcher_core.batching import Batching
from fletcher_core.engines.mlx.batch import DeviceBatch, FilledBatch
from fletcher_core.engines.mlx.device import MlxMemory, device_name, gpu_dialect
from fletcher_core.engines.mlx.encoder import Encoder
from fletcher_core.engines.mlx.flights import Flight, Flights, vectors_of
from fletcher_core.engines.mlx.sizing import warm_up
from fletcher_core.engines.mlx.transfer import Transfers, transfers
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.models import ModelPackage, Weights
from fletcher_core.setting_values import Precision
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.layers import Sampling
from fletcher_core.token_budget import TokenBudget, round_up, token_buckets
from fletcher_core.tokens import TokenBatch, cumulative

_DTYPES = {"fp16": mx.float16, "bf16": mx.bfloat16, "fp32": mx.float32}

# GPU time of a batch, in pieces: larger products run nearer to the device's peak.
BATCH_SECONDS = 0.040
# The one shape of the batch-invariant mode, in tokens.
INVARIANT_TOKENS = 4096
# Kernels whose stand-ins give a text other bits in other company.
BATCH_BOUND = frozenset({"attention", "pool"})
_LARGEST_BUCKET = {"metal": 32768, "cuda": 131072, None: 1024}

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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
        layer_sample: observe the layers of one batch in so many, which is computed alone and step by step; 0 of none.
        on_cpu: run MLX's CPU backend, for tests: plain operations, very slow.

    Attributes: `kernels` (which run and which are replaced), `buckets`, `flights` (what is on the device).

    Raises:
        ConfigError: unknown precision, an unknown kernel in FLETCHER_KERNELS_OFF, or `batch_invariant` where a kernel
            that it needs does not run.
        EngineError: MLX cannot run the model on this device.
    """

    name = "mlx"
    ahead = 3

    def __init__(
        self,
        package: ModelPackage,
        weights: Weights,
        *,
        normalize: bool,
        dimension: int,
        precision: Precision = "auto",
        batch_invariant: bool = False,
        layer_sample: int = 0,
        on_cpu: bool = False,
    ):
        if precision not in ("auto", *_DTYPES):
            raise ConfigError(f"precision is {precision!r}; choose one of auto, {', '.join(sorted(_DTYPES))}")
        self.dimension = dimension
        self.batch_invariant = batch_invariant
        self._package = package
        self._normalize = normalize
        self._on_cpu = on_cpu
        self._sampling = Sampling(layer_sample)
        # MLX's streams belong to the thread that made them: all of MLX happens on this one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fletcher-gpu")
        self._ident = self._thread.submit(threading.get_ident).result()
        opened: list[Transfers] = []
        self._end = weakref.finalize(self, _end, opened)
        self._end.atexit = False  # the device goes with the process
        self._call(self._load, weights, precision, opened)

    @property
    def budget(self) -> TokenBudget:
        """Tokens of a batch, as learned so far."""
        return self.flights.budget

    @property
    def batching(self) -> Batching:
        """See `Engine.batching`: longest first, each batch filled to a bucket as well as its sequences allow."""
        return Batching("bucketed", self.budget.current, buckets=self.buckets)

    def device_memory(self) -> dict[str, int]:
        """See `Engine.device_memory`."""
        memory = self.memory
        return {"active": memory.active(), "cache": memory.cached(), "peak": memory.peak(), "limit": memory.limit}

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[npt.NDArray[np.float32]]:
        """See `Engine.run`."""
        waiting: deque[Future[list[Flight]]] = deque()
        done = False
        try:
            for batch in batches:
                filled = replace(self._fill(batch), sampled=self._sampling.is_due())
                waiting.append(self._submit(self.flights.launch, filled, stop))
                if len(waiting) == self.ahead:
                    yield self._call(self._collect, waiting.popleft())
            while waiting:
                yield self._call(self._collect, waiting.popleft())
            done = True
        finally:
            for future in waiting:
                future.cancel()
            if not done and self._end.alive:
                self._call(self.flights.drain)

    def _fill(self, batch: TokenBatch) -> FilledBatch:
        return self._filled(batch, round_up(len(batch.ids), self.buckets))

    def _filled(self, batch: TokenBatch, bucket: int) -> FilledBatch:
        return FilledBatch.fill(batch, bucket, self._tile_rows, self._package.architecture.max_positions)

    def hidden_states(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        """The last block's output, float32 [T, hidden size]: for tests against a reference."""

        def compute() -> npt.NDArray[np.float32]:
            transfer = self._transfers.open()
            *_, x = self._encoder.steps(DeviceBatch.upload(self._fill(batch), transfer))
            states = np.array(x.astype(mx.float32))[: len(batch.ids)]
            transfer.close()
            return states

        return self._call(compute)

    def close(self) -> None:
        """End the engine's thread; the engine cannot be used after that. An engine that nobody has any more ends so."""
        if self._end.alive:
            self._call(self.flights.drain)
            self._call(self._end)
        self._thread.shutdown()

    def _submit(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> "Future[Result]":
        if not self._end.alive:
            raise EngineError("this engine is closed: load another one")
        return self._thread.submit(work, *args, **kwargs)

    def _call(self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if threading.get_ident() == self._ident:  # an abandoned iterator that is collected on the engine's thread
            return work(*args, **kwargs)
        return self._submit(work, *args, **kwargs).result()

    # From here on everything runs on the engine's thread.

    def _load(self, weights: Weights, precision: Precision, opened: list[Transfers]) -> None:
        dialect = None if self._on_cpu else gpu_dialect()
        if dialect is None:
            mx.set_default_device(mx.cpu)
        off = switched_off()
        if unknown := sorted(set(off) - set(KERNEL_NAMES)):
            raise ConfigError(f"{OFF} names {', '.join(unknown)}; the kernels are {', '.join(KERNEL_NAMES)}")
        try:
            self.device = device_name(dialect)
            self.memory = MlxMemory(dialect)
            self._transfers = transfers(dialect)
            opened.append(self._transfers)
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
            if self.batch_invariant and dialect is not None:
                self._require(BATCH_BOUND)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"MLX cannot run {self._package.name!r} on {self.device}: {error}") from error

    def _require(self, names: frozenset[str]) -> None:
        """Refuse a promise that plain operations would not keep: their shapes follow the longest text of a batch."""
        reasons = {name: self.kernels.replaced[name] for name in names & self.kernels.replaced.keys()}
        reasons |= dict.fromkeys(names & self.kernels.uncovered, "does not cover this model's sizes")
        if reasons:
            why = "; ".join(f"{name} {reason}" for name, reason in sorted(reasons.items()))
            raise ConfigError(
                f"batch_invariant cannot be kept for {self._package.name!r} in {self.precision} on {self.device}, as "
                f"plain operations stand in for a kernel ({why}): turn batch_invariant off, or take a CPU engine"
                f"{', or fp16 or bf16' if self.precision == 'fp32' else ''}"
            )

    def _is_finite(self) -> bool:
        """Run random tokens at the longest length, which also builds and checks the kernels."""
        architecture = self._package.architecture
        length = min(self._package.max_length, 512)
        ids = np.random.default_rng(0).integers(0, architecture.vocab_size, 2 * length + 3).astype(np.int32)
        batch = TokenBatch(ids, cumulative(np.array([length, 3, length])))
        filled = self._filled(batch, round_up(len(ids), (64,)))
        return bool(np.isfinite(vectors_of(self._encoder, self._transfers, filled)).all())

    def _choose_sizes(self, largest: int) -> None:
        a = self._package.architecture
        prior = 2 * a.hidden_size * 14 + 4 * a.intermediate_size * (3 if a.gated else 2)
        admission = Admission(self.memory, float(prior))
        candidates = token_buckets(largest)
        if self.batch_invariant:
            candidates = (max(INVARIANT_TOKENS, -(-self._package.max_length // 64) * 64),)
        sizes = warm_up(candidates, partial(self._warm_up, admission), admission, BATCH_SECONDS)
        self.buckets = sizes.buckets
        self.memory.limit_cache(max(1 << 28, 2 * int(admission.estimate(self.buckets[-1]))))
        self.flights = Flights(self._encoder, self._transfers, sizes, admission, self._fill, self.device)

    def _warm_up(self, admission: Admission, bucket: int) -> list[float]:
        """Seconds of some runs of a full bucket."""
        length = max(1, min(self._package.max_length, 64, bucket))
        lengths = np.full(bucket // length, length)
        ids = np.random.default_rng(1).integers(0, self._package.architecture.vocab_size, int(lengths.sum()))
        batch = self._filled(TokenBatch(ids.astype(np.int32), cumulative(lengths)), bucket)
        with admission.measuring(bucket):
            vectors_of(self._encoder, self._transfers, batch)
        seconds: list[float] = []
        while len(seconds) < 3 and (not seconds or sum(seconds) < 0.1):
            started = time.perf_counter()
            vectors_of(self._encoder, self._transfers, batch)
            seconds.append(time.perf_counter() - started)
        return seconds

    def _collect(self, launched: "Future[list[Flight]]") -> npt.NDArray[np.float32]:
        return self.flights.collect(launched.result())


def _end(opened: list[Transfers]) -> None:
    """Give back what the device has. On any thread, in the middle of anything: it must not touch the engine's thread,
    which ends by itself when its executor is gone."""
    for each in opened:
        each.close()

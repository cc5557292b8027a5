"""The CPU engine in our own code: packed sequences through `kernels/simd/encoder`.

No padding. Where there are several batches, each core takes one through all layers, without barriers; a batch on its
own, such as one text, is split over the cores step by step. A text's vector is the same to the last bit in whatever
batch and on however many cores it runs, since no element of a product depends on another.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fletcher_core.batching import Batching
from fletcher_core.engines.cores import available_cores
from fletcher_core.engines.resident import resident_memory
from fletcher_core.errors import EngineError
from fletcher_core.models import Architecture, ModelPackage, Weights
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.layers import Sampling, layer_names, observe_layers
from fletcher_core.tokens import TokenBatch

if TYPE_CHECKING:
    from fletcher_core.engines.native._encoder import Encoder

# Activations of so many tokens and one panel of a weight stay in a core's own cache.
TOKEN_BUDGET = 256

Float32 = npt.NDArray[np.float32]


def supported(architecture: Architecture) -> bool:
    """Whether this processor and this build run a model of this architecture, its widths multiples of 16."""
    try:
        from fletcher_core.engines.native import _encoder
    except ImportError:  # not built: another processor, or no compiler
        return False
    widths = (architecture.hidden_size, architecture.intermediate_size, architecture.head_dim)
    return bool(_encoder.supported()) and all(width % 16 == 0 for width in widths)


def has_matrix_unit() -> bool:
    """Whether the processor has a unit for products of bfloat16 tiles (AMX), which OpenVINO uses and we do not."""
    from fletcher_core.engines.native import _encoder

    return bool(_encoder.has_amx())


class NativeEngine:
    """Runs an encoder on the CPU in bfloat16, with float32 sums and a float32 residual stream.

    Args:
        package: architecture and pooling.
        weights: the checkpoint; its embedding tables are read in place.
        normalize: scale each vector to unit length.
        dimension: keep this many leading elements of each vector.
        threads: CPU threads; None takes every core this process may use.
        layer_sample: observe the layers of one batch in so many; 0 of none.

    Raises:
        EngineError: not for this processor, or not for this model; see `supported`.
    """

    name = "native"
    precision = "bf16"

    def __init__(
        self,
        package: ModelPackage,
        weights: Weights,
        *,
        normalize: bool,
        dimension: int,
        threads: int | None = None,
        layer_sample: int = 0,
    ):
        if not supported(package.architecture):
            raise EngineError(
                f"the native engine cannot run {package.name!r} on this processor: take engine='openvino'"
            )
        self.device = "CPU, AVX-512 with bfloat16"
        self.dimension = dimension
        self._encoder = _load(package, weights, normalize, dimension)
        self._layers = layer_names(package.architecture.layers)
        self._sampling = Sampling(layer_sample)
        self._threads = threads or available_cores()
        self.ahead = self._threads + 2
        self._start()
        # Now, so that they have this thread's priority and not that of whoever embeds first.
        together = threading.Barrier(self._threads)
        try:
            wait([self._pool.submit(together.wait) for _ in range(self._threads)])
        except BaseException as error:  # Ctrl-C too
            together.abort()  # those that were begun would wait for the others for ever
            self._pool.shutdown(wait=False)
            if not isinstance(error, RuntimeError):
                raise
            raise EngineError(
                f"{self._threads} threads cannot be started ({error}): set fewer threads, or allow more processes"
            ) from error
        _LOADED.add(self)

    def _start(self) -> None:
        """The threads, none of which runs yet."""
        self._encoder.start(self._threads)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="fletcher-cpu")

    @property
    def batching(self) -> Batching:
        """See `Engine.batching`: sorted by length, cut by tokens, none of them computed for nothing."""
        return Batching("packed", TOKEN_BUDGET)

    def device_memory(self) -> dict[str, int]:
        """See `Engine.device_memory`."""
        return resident_memory()

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[Float32]:
        """See `Engine.run`."""
        self._encoder.wake()  # while the first batch is being made
        source = iter(batches)
        ahead = list(islice(source, 2))
        if len(ahead) == 1:
            stop.check()
            yield self._vectors(ahead[0], True, self._sampling.is_due())
            return
        busy: deque[Future[Float32]] = deque()
        try:
            for batch in chain(ahead, source):
                stop.check()
                if len(busy) > self._threads:  # one more than threads, so that none waits for the next batch
                    yield busy.popleft().result()
                busy.append(self._pool.submit(self._vectors, batch, False, self._sampling.is_due()))
            while busy:
                yield busy.popleft().result()
        finally:
            wait(busy)

    def _vectors(self, batch: TokenBatch, together: bool, sampled: bool) -> Float32:
        vectors = np.empty((len(batch), self.dimension), np.float32)
        seconds = np.empty(len(self._layers)) if sampled else None
        try:
            self._encoder.run(batch.ids, batch.cu_seqlens.astype(np.int32), vectors, together, seconds)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise EngineError(f"the native engine failed on {len(batch)} texts: {error}") from error
        if seconds is not None:
            observe_layers(dict(zip(self._layers, seconds.tolist(), strict=True)))
        return vectors


_LOADED: "weakref.WeakSet[NativeEngine]" = weakref.WeakSet()


def _after_fork() -> None:
    """A forked process has its parent's engines and none of their threads."""
    for engine in _LOADED:
        engine._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _load(package: ModelPackage, weights: Weights, normalize: bool, dimension: int) -> "Encoder":
    from fletcher_core.engines.native import _encoder

    a, w = package.architecture, weights
    angles = a.rotary_angles()
    # The row of token type 0 goes into a table that every token reads anyway.
    words = w.words if w.positions is not None else w.words + w.token_type
    sizes: dict[str, object] = {
        "hidden": a.hidden_size,
        "layers": a.layers,
        "heads": a.heads,
        "intermediate": a.intermediate_size,
        "gated": a.gated,
        "activation": a.activation,
        "epsilon": a.norm_epsilon,
        "pooling": package.pooling,
        "normalize": normalize,
        "dimension": dimension,
        "max_positions": a.max_positions,
    }
    layers = [
        [
            None if array is None else _floats(array)
            for array in (
                layer.qkv,
                layer.qkv_bias,
                layer.attention_out,
                layer.attention_out_bias,
                layer.attention_norm,
                layer.attention_norm_bias,
                layer.gate,
                layer.up,
                layer.up_bias,
                layer.down,
                layer.down_bias,
                layer.output_norm,
                layer.output_norm_bias,
            )
        ]
        for layer in w.layers
    ]
    return _encoder.Encoder(
        sizes,
        layers,
        _floats(words),
        None if w.positions is None else _floats(w.positions + w.token_type),
        _floats(w.norm),
        _floats(w.norm_bias),
        None if angles is None else _floats(np.cos(angles)),
        None if angles is None else _floats(np.sin(angles)),
    )


def _floats(array: npt.NDArray[Any]) -> Float32:
    return np.ascontiguousarray(array, dtype=np.float32)

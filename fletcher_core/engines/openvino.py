"""The CPU engine: OpenVINO over padded batches, one stream a core, several requests in flight.

Padded lengths are rounded up to 16 tokens. That costs some padding and gains more: the kernels' blocks come out even
(measured 5 % faster here), and since the blocks of a row no longer depend on its neighbours, a text's vector is the
same to the last bit in whatever batch it runs, in int8 too. `tests/core/engines` holds it to that.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.properties as props
import openvino.properties.hint as hints

from fletcher_core.batching import Batching
from fletcher_core.engines import signal_stack
from fletcher_core.engines.cores import available_cores
from fletcher_core.engines.openvino_graph import encoder_graph
from fletcher_core.engines.openvino_int8 import group_size
from fletcher_core.engines.resident import resident_memory
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.models import ModelPackage, Weights
from fletcher_core.setting_values import Precision, check_choice
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.layers import Sampling, layer_names, observe_layers
from fletcher_core.tokens import TokenBatch


class OpenVinoEngine:
    """Runs an encoder on the CPU.

    Args:
        package: architecture and pooling.
        weights: the checkpoint.
        normalize: scale each vector to unit length.
        dimension: keep this many leading elements of each vector.
        precision: "auto" takes bfloat16 where the CPU computes in it and float32 elsewhere. "int8" takes int8 for the
            products with weights, and what "auto" takes for the rest.
        threads: CPU threads; None takes every core this process may use.
        layer_sample: observe the layers of one batch in so many; 0 of none. OpenVINO takes the time of every step of
            every batch then, and it is read for those.

    Raises:
        ConfigError: unknown precision, fp16, or bf16 on a CPU without it.
        EngineError: OpenVINO cannot compile the model, or a weight for int8 is not finite.
    """

    name = "openvino"
    # A padded length is rounded up to so many tokens.
    length_multiple = 16

    def __init__(
        self,
        package: ModelPackage,
        weights: Weights,
        *,
        normalize: bool,
        dimension: int,
        precision: Precision = "auto",
        threads: int | None = None,
        layer_sample: int = 0,
    ):
        with signal_stack.kept():
            core = ov.Core()
            self.device = str(core.get_property("CPU", props.device.full_name)).strip()
        self.precision = _choose_precision(precision, core)
        self.dimension = dimension
        int8 = self.precision == "int8"
        bf16 = (_choose_precision("auto", core) if int8 else self.precision) == "bf16"
        # float32 activations are twice as large: half the tokens stay in the cache (measured: 186 against 179 texts/s).
        self.token_budget = 1024 if bf16 else 512
        threads = threads or available_cores()
        self.ahead = threads + 2
        graph = encoder_graph(package.architecture, weights, package.pooling, normalize, dimension, int8)
        settings = {
            hints.inference_precision: ov.Type.bf16 if bf16 else ov.Type.f32,
            # Separate batches on separate cores need no barriers between them: as fast as all cores on one batch or
            # faster, and steadier when the machine is shared.
            props.num_streams: threads,
            props.inference_num_threads: threads,
        }
        self._layers = layer_names(package.architecture.layers)
        self._sampling = Sampling(layer_sample)
        if layer_sample:
            settings[props.enable_profiling] = True
        if int8:
            settings[hints.dynamic_quantization_group_size] = group_size(package.architecture)
        try:
            with signal_stack.kept():
                compiled = core.compile_model(graph, "CPU", settings)
                # One request more than streams, so that a stream never waits for Python to hand it the next batch.
                self._requests = [compiled.create_infer_request() for _ in range(threads + 1)]
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile {package.name!r} for this CPU: {error}") from error

    @property
    def batching(self) -> Batching:
        """See `Engine.batching`: sorted by length, cut by tokens with padding."""
        return Batching("padded", self.token_budget, self.length_multiple)

    def device_memory(self) -> dict[str, int]:
        """See `Engine.device_memory`."""
        return resident_memory()

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[npt.NDArray[np.float32]]:
        """See `Engine.run`."""
        idle = deque(self._requests)
        busy: deque[tuple[ov.InferRequest, tuple[npt.NDArray[np.int32], ...]]] = deque()
        try:
            for batch in batches:
                stop.check()
                if not idle:
                    yield self._finish(busy, idle)
                request = idle.popleft()
                inputs = pad(batch, self.length_multiple)
                for index, array in enumerate(inputs):
                    request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
                request.start_async()
                busy.append((request, inputs))  # the arrays must outlive the request: OpenVINO reads them in place
            while busy:
                yield self._finish(busy, idle)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on {self.device}: {error}") from error
        finally:
            for request, _ in busy:
                request.wait()

    def _finish(self, busy: deque, idle: deque) -> npt.NDArray[np.float32]:  # type: ignore[type-arg]
        request, _ = busy[0]
        request.wait()
        vectors: npt.NDArray[np.float32] = request.get_output_tensor(0).data.copy()
        if self._sampling.is_due():
            self._observe(request)
        busy.popleft()
        idle.append(request)
        return vectors

    def _observe(self, request: ov.InferRequest) -> None:
        """Add up the steps of a batch by the layers that the graph's names say they belong to."""
        seconds = Counter(dict.fromkeys(self._layers, 0.0))
        for step in request.get_profiling_info():
            layer = step.node_name.split("/")[0]
            if layer in seconds:  # else one of OpenVINO's own, such as the input
                seconds[layer] += step.real_time.total_seconds()
        observe_layers(seconds)


def pad(batch: TokenBatch, multiple: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Packed sequences -> `ids` int32 [B, S] with zeros past each length, `lengths` int32 [B]; S is a multiple."""
    lengths = batch.lengths.astype(np.int32)
    width = -(-int(lengths.max()) // multiple) * multiple
    ids = np.zeros((len(lengths), width), dtype=np.int32)
    ids[np.arange(width, dtype=np.int32) < lengths[:, None]] = batch.ids
    return ids, lengths


def _choose_precision(wanted: Precision, core: ov.Core) -> str:
    check_choice("precision", wanted, Precision)
    if wanted == "fp16":
        raise ConfigError(
            "precision is 'fp16' and the CPU engine computes in bf16, fp32 or int8: use 'auto' or one of these"
        )
    if wanted == "int8":
        return wanted
    has_bf16 = "BF16" in core.get_property("CPU", props.device.capabilities)
    if wanted == "bf16" and not has_bf16:
        raise ConfigError("precision is 'bf16' and this CPU does not compute in bfloat16: use 'auto' or 'fp32'")
    return "bf16" if has_bf16 and wanted != "fp32" else "fp32"

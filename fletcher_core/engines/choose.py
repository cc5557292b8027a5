"""Which engine runs a model here: a GPU through MLX where there is one, else our own code or OpenVINO on the CPU."""

import logging
from importlib.util import find_spec
from typing import Any

from fletcher_core.engines.engine import Engine
from fletcher_core.engines.priority import at_niceness
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.models import ModelPackage, Weights
from fletcher_core.models.architecture import Architecture
from fletcher_core.setting_values import EngineChoice, check_engine

_LOG = logging.getLogger(__name__)


def has_gpu() -> bool:
    """Whether MLX is installed and finds a GPU."""
    if find_spec("mlx") is None:
        return False
    try:
        from fletcher_core.engines.mlx.device import gpu_dialect
    except ImportError as error:  # on Linux MLX comes in two packages, and the one with the device may be missing
        _LOG.info("MLX is installed and cannot be loaded: %s", error)
        return False
    return gpu_dialect() is not None


def engine_name(choice: EngineChoice, architecture: Architecture, precision: str = "auto") -> str:
    """Which engine `load_engine` would load, without loading one: "mlx", "native" or "openvino".

    A GPU that does not start, or does not run the model, is found out only by loading.
    """
    if choice == "mlx" or (choice == "auto" and precision != "int8" and has_gpu()):
        return "mlx"
    free = choice in ("auto", "cpu")
    return "native" if choice == "native" or (free and _native_is_faster(architecture, precision)) else "openvino"


def load_engine(
    choice: EngineChoice,
    package: ModelPackage,
    weights: Weights,
    *,
    threads: int | None = None,
    batch_invariant: bool = False,
    niceness: int = 0,
    **settings: Any,
) -> Engine:
    """The engine `choice`, with `package` loaded on its device.

    Args:
        choice: "auto" takes a GPU where there is one and it runs the model, else as "cpu": the faster of the CPU
            engines, for "int8" OpenVINO, which alone has it.
        threads: of the CPU engines.
        batch_invariant: of the GPU engine; the CPU engines always are.
        niceness: of the CPU engines' threads, below this one's priority.
        settings: `normalize`, `dimension`, `precision` and `layer_sample`, as all engines take them.

    Raises:
        ConfigError: there is no such engine, no GPU for "mlx", or the engine does not have the precision.
        EngineError: the device cannot run the model.
    """
    check_engine(choice, settings.get("precision", "auto"))
    int8 = settings.get("precision") == "int8"
    if choice == "mlx" and not has_gpu():
        raise ConfigError(
            "engine is 'mlx' and MLX finds no GPU here: on NVIDIA install Fletcher's extra `cuda`, on Apple Silicon "
            "use a native (arm64) Python, or take engine='auto'"
        )
    # Each engine's library takes long to import, and only one is needed.
    if choice == "mlx" or (choice == "auto" and not int8 and has_gpu()):
        from fletcher_core.engines.mlx.engine import MlxEngine

        try:
            return MlxEngine(package, weights, batch_invariant=batch_invariant, **settings)
        except EngineError as error:
            if choice == "mlx":
                raise
            _LOG.warning("the GPU engine does not start, the CPU engine takes over: %s", error)
    free = choice in ("auto", "cpu")
    if choice == "native" or (free and _native_is_faster(package.architecture, settings.get("precision", "auto"))):
        return at_niceness(niceness, lambda: _native(package, weights, threads=threads, **settings))
    from fletcher_core.engines.openvino import OpenVinoEngine

    return at_niceness(niceness, lambda: OpenVinoEngine(package, weights, threads=threads, **settings))


def _native_is_faster(architecture: Architecture, precision: str) -> bool:
    """In bfloat16, on a processor without tiles; that unit, which OpenVINO knows to use, has many times the rate."""
    from fletcher_core.engines.native import engine

    return precision in ("auto", "bf16") and engine.supported(architecture) and not engine.has_matrix_unit()


def _native(package: ModelPackage, weights: Weights, *, precision: str = "auto", **settings: Any) -> Engine:
    from fletcher_core.engines.native.engine import NativeEngine

    return NativeEngine(package, weights, **settings)

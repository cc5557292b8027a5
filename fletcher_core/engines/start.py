"""From a spec to an engine that goes on working: on a GPU in a process of its own, with a CPU engine to stand in."""

import logging
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fletcher_core.engines.cores import available_cores
from fletcher_core.engines.device_memory import watched
from fletcher_core.engines.devices import chosen_gpus
from fletcher_core.engines.engine import Engine
from fletcher_core.engines.failover import FailoverEngine
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.engines.pool import EnginePool
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.setting_values import Devices, EngineChoice, Isolation, check_choice, check_devices

_LOG = logging.getLogger(__name__)

# NVIDIA's driver on Linux, and under Windows' subsystem for it. Asking MLX would open the device in this process.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


def start_engine(spec: EngineSpec, isolation: Isolation = "auto", devices: Devices = None) -> Engine:
    """The engine of `spec`: where there are several devices, an `EnginePool` of one on each.

    Args:
        isolation: "process" runs it in a process of its own, with another engine to stand in when it fails; "none"
            runs it in this one; "auto" takes "process" for a GPU and "none" for a CPU, whose engines answer a single
            text sooner so.
        devices: how many, or the numbers of the GPUs; None takes all GPUs. An engine that `spec` puts on the CPU runs
            in so many processes, which share the threads.

    Raises:
        ConfigError: unknown isolation, devices that are not there; otherwise as `EngineSpec.load`.
        EngineError: the engine failed, or its process was lost, and "auto" was not free to take a CPU engine instead.
    """
    check_choice("isolation", isolation, Isolation)
    check_devices(devices, spec.choice, isolation)
    return watched(_started(spec, isolation, devices))


def _started(spec: EngineSpec, isolation: Isolation, devices: Devices) -> Engine:
    specs = _spread(spec, devices)
    if isolation == "none" or (isolation == "auto" and len(specs) == 1 and not _may_run_on_gpu(spec)):
        return spec.load()
    try:
        primary = EnginePool(specs) if len(specs) > 1 else IsolatedEngine(specs[0])
    except EngineError as error:
        if spec.choice != "auto":
            raise
        _LOG.warning("the GPU engine does not start, the CPU engine takes over: %s", error)
        return replace(spec, choice="cpu").load()
    if (
        isolation == "auto" and _may_run_on_gpu(spec) and primary.name != "mlx"
    ):  # there is no GPU after all, or none that runs this model
        primary.close()
        return replace(spec, choice="cpu").load()
    primary.insist()
    standby = _standby(spec, primary.name)
    return FailoverEngine(primary, lambda: IsolatedEngine(standby))


def _spread(spec: EngineSpec, devices: Devices) -> list[EngineSpec]:
    """What each device's process is to load."""
    if _may_run_on_gpu(spec):
        gpus = chosen_gpus(devices)
        if devices is None and len(gpus) < 2:  # the one that MLX takes by itself, if there is one
            return [spec]
        # Of several each is a GPU's or out: one that does not start must not make CPU engines of them all.
        choice: EngineChoice = "mlx" if len(gpus) > 1 else spec.choice
        return [replace(spec, choice=choice, device=gpu) for gpu in gpus]
    if not isinstance(devices, int):
        if devices is not None:
            raise ConfigError(f"devices is {list(devices)!r}, and there is no GPU here for MLX: leave it out")
        return [spec]
    if devices > 1 and spec.choice in ("auto", "mlx") and spec.precision != "int8":
        raise ConfigError(
            f"devices is {devices}, and there is no GPU here for MLX: leave it out, or set engine='cpu' for so many "
            "processes on the CPU"
        )
    threads = max(1, (spec.threads or available_cores()) // devices) if devices > 1 else spec.threads
    return [replace(spec, threads=threads) for _ in range(devices)]


def second_opinion(spec: EngineSpec, engine: Engine) -> Callable[[], Engine] | None:
    """What loads another engine, in float32, for texts that `engine` gave no sound vector; None if it is that one."""
    if (engine.name, engine.precision) == ("openvino", "fp32"):
        return None
    other = replace(spec, choice="openvino", precision="fp32", batch_invariant=False)
    isolated = isinstance(engine, FailoverEngine)
    return lambda: IsolatedEngine(other) if isolated else other.load()


def _standby(spec: EngineSpec, primary: str) -> EngineSpec:
    """An engine on the CPU, and if the primary is one, another where there is another."""
    precision = spec.precision if spec.precision in ("fp32", "int8") else "auto"
    choice: Literal["cpu", "openvino"] = "openvino" if primary == "native" or precision == "int8" else "cpu"
    return replace(spec, choice=choice, precision=precision, batch_invariant=False)


def _may_run_on_gpu(spec: EngineSpec) -> bool:
    """As far as can be told without touching one."""
    if spec.choice not in ("auto", "mlx") or spec.precision == "int8" or find_spec("mlx") is None:
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return any(Path(file).exists() for file in _GPU_FILES)

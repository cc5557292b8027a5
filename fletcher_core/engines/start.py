"""From a spec to an engine that goes on working: on a GPU in a process of its own, with a CPU engine to stand in."""

import logging
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fletcher_core.engines.device_memory import watched
from fletcher_core.engines.engine import Engine
from fletcher_core.engines.failover import FailoverEngine
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.engines.spec import EngineSpec
from fletcher_core.errors import EngineError
from fletcher_core.setting_values import Isolation, check_choice

_LOG = logging.getLogger(__name__)

# NVIDIA's driver on Linux, and under Windows' subsystem for it. Asking MLX would open the device in this process.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


def start_engine(spec: EngineSpec, isolation: Isolation = "auto") -> Engine:
    """The engine of `spec`.

    Args:
        isolation: "process" runs it in a process of its own, with another engine to stand in when it fails; "none"
            runs it in this one; "auto" takes "process" for a GPU and "none" for a CPU, whose engines answer a single
            text sooner so.

    Raises:
        ConfigError: unknown isolation; otherwise as `EngineSpec.load`.
        EngineError: the engine failed, or its process was lost, and "auto" was not free to take a CPU engine instead.
    """
    check_choice("isolation", isolation, Isolation)
    return watched(_started(spec, isolation))


def _started(spec: EngineSpec, isolation: Isolation) -> Engine:
    if isolation == "none" or (isolation == "auto" and not _may_run_on_gpu(spec)):
        return spec.load()
    try:
        primary = IsolatedEngine(spec)
    except EngineError as error:
        if spec.choice != "auto":
            raise
        _LOG.warning("the GPU engine does not start, the CPU engine takes over: %s", error)
        return replace(spec, choice="cpu").load()
    if isolation == "auto" and primary.name != "mlx":  # there is no GPU after all, or none that runs this model
        primary.close()
        return replace(spec, choice="cpu").load()
    primary.insist()
    standby = _standby(spec, primary.name)
    return FailoverEngine(primary, lambda: IsolatedEngine(standby))


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

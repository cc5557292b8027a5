"""How many GPUs there are, and which of them an engine is to use, without touching one: a setting in, devices out.

A device here is what `CUDA_VISIBLE_DEVICES` of the process that runs it will say.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fletcher_core.errors import ConfigError
from fletcher_core.setting_values import Devices

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_DEV, _PROC = Path("/dev"), Path("/proc/driver/nvidia/gpus")
_SMI_SECONDS = 10.0


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would find in this process, in its order; on a Mac its one."""
    if sys.platform == "darwin":
        return [""]
    listed = os.environ.get(_VARIABLE)
    if listed is None:
        return [str(number) for number in range(_count_gpus())]
    found: list[str] = []
    for name in map(str.strip, listed.split(",")):
        if not name or name.startswith("-"):  # as CUDA reads it: what follows is not seen
            break
        found.append(name)
    return found


def chosen_gpus(devices: Devices) -> list[str]:
    """The GPUs of the setting `devices`: None is all of them.

    Raises:
        ConfigError: there are not as many, or none of that number.
    """
    gpus = visible_gpus()
    if devices is None:
        return gpus
    if sys.platform == "darwin" and devices not in (1, [0], (0,)):
        raise ConfigError(f"devices is {devices!r}, and a Mac has one GPU: leave it out")
    wanted: Sequence[int] = range(devices) if isinstance(devices, int) else devices
    if missing := [index for index in wanted if index >= len(gpus)]:
        seen = f" ({_VARIABLE} is {os.environ[_VARIABLE]!r})" if _VARIABLE in os.environ else ""
        said = "are none" if not gpus else "is 1" if len(gpus) == 1 else f"are {len(gpus)}"
        raise ConfigError(
            f"devices is {devices!r}, and of GPUs here there {said}{seen}: there is no device {missing[0]}, they are "
            "counted from 0"
        )
    return [gpus[index] for index in wanted]


def environment(device: str) -> dict[str, str]:
    """What the process that is to see only `device` needs in its environment; "" lets it see what this one does."""
    if not device:
        return {}
    # Numbers as nvidia-smi has them, unless the caller's own list was by CUDA's order, the fastest first.
    order = {} if _VARIABLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {**order, _VARIABLE: device}


def _count_gpus() -> int:
    # A container has the device files of its own GPUs, and may see all of them in /proc.
    for found in (
        sum(1 for file in _DEV.glob("nvidia[0-9]*") if file.name.removeprefix("nvidia").isdigit()),
        sum(1 for _ in _PROC.glob("*")) if _PROC.is_dir() else 0,
    ):
        if found:
            return found
    return _count_by_driver()


def _count_by_driver() -> int:
    """By NVIDIA's own tool, where there are no files: under Windows' subsystem for Linux."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(1 for line in said.splitlines() if line.startswith("GPU "))

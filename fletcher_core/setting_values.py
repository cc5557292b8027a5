"""What settings may say: the words of those that take one of a few, the numbers that others need. Others are refused.

In come a setting's name and value, out goes nothing or a ConfigError. Imports nothing heavy, so that definitions are
checked long before a model is loaded; the parts that use a setting check by the same functions.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from fletcher_core.errors import ConfigError

EngineChoice = Literal["auto", "mlx", "cpu", "native", "openvino"]
# "int8" is never chosen by itself: its vectors are others than those of the floats, which agree to some 0.9999.
Precision = Literal["auto", "bf16", "fp16", "fp32", "int8"]
Isolation = Literal["auto", "process", "none"]
LongText = Literal["truncate", "chunk", "error"]
VectorType = Literal["float32", "float16"]
OnEmpty = Literal["skip", "error"]
OnDuplicate = Literal["quarantine", "error"]
Transport = Literal["fp32", "fp16"]
Compression = Literal["lz4", "zstd"]
Devices = int | Sequence[int] | None
"""So many devices, or those of these numbers, counted from 0; None: all GPUs."""


_MOST_DEVICES = 64


def check_choice(name: str, value: object, choices: Any) -> None:
    """ConfigError unless `value` is one of the words of the Literal `choices`."""
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(get_args(choices))}")


def check_whole(name: str, value: object, least: int) -> None:
    """ConfigError unless `value` is an int of at least `least` that a machine's register holds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def check_devices(devices: object, engine: str, isolation: str) -> None:
    """ConfigError unless `devices` is a number of devices or a list of some, and goes with the other two settings."""
    if devices is None:
        return
    if isinstance(devices, Sequence) and not isinstance(devices, str | bytes):
        for index in devices:
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < _MOST_DEVICES:
                raise ConfigError(
                    f"devices is {devices!r}; give whole numbers of devices, counted from 0, as in [0, 1]"
                )
        if not devices or len(set(devices)) < len(devices):
            raise ConfigError(f"devices is {devices!r}; name at least one device, and each once")
        if engine in ("cpu", "native", "openvino"):
            raise ConfigError(f"devices is {devices!r}, which names GPUs, and engine is {engine!r}: give a number")
    elif not isinstance(devices, int) or isinstance(devices, bool) or not 1 <= devices <= _MOST_DEVICES:
        raise ConfigError(
            f"devices is {devices!r}; give a number from 1 to {_MOST_DEVICES}, or a list of devices, as in [0, 1]"
        )
    if isolation == "none" and devices != 1:
        raise ConfigError(
            f"devices is {devices!r} and isolation is 'none': each device needs a process of its own; leave one of the "
            "two out"
        )


def check_at_least(name: str, value: float, least: float) -> None:
    """ConfigError unless `value` is at least `least`; a NaN is not."""
    if not value >= least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def check_engine(engine: str, precision: str) -> None:
    """ConfigError for an engine or a precision that does not exist, or that do not go together on any machine."""
    check_choice("engine", engine, EngineChoice)
    check_choice("precision", precision, Precision)
    if precision == "int8" and engine in ("mlx", "native"):
        raise ConfigError(
            f"precision is 'int8' and engine is {engine!r}: only OpenVINO has it, on the CPU; use engine='openvino' or "
            "'auto'"
        )
    if engine == "native" and precision not in ("auto", "bf16"):
        raise ConfigError(f"precision is {precision!r} and the native engine computes in bf16: use engine='openvino'")

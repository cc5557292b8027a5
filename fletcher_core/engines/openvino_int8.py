"""int8 in OpenVINO: weights rounded once, activations as they come.

A weight is int8 with one scale for each of its outputs, a constant of the graph. The plugin rounds the activations
itself (its "dynamic quantization"), a group of neighbouring elements of one token at a time, each with its own scale.
So no text needs to be run beforehand, none falls outside a range that others set, and a token's numbers do not depend
on its neighbours. Ranges fixed beforehand are a ninth faster, and lose texts unlike those that set them: cosines down
to 0.88 (docs/performance.md).
"""

from math import gcd

import numpy as np
import numpy.typing as npt
from openvino import Node
from openvino import opset15 as op

from fletcher_core.errors import EngineError
from fletcher_core.models import Architecture

# Longer groups are faster and coarser: 384 elements give MiniLM 1.14 times the speed of 64.
_LONGEST_GROUP = 512


def group_size(architecture: Architecture) -> int:
    """How many elements of a token share a scale. The plugin stays in floats where it does not divide the width."""
    size = gcd(architecture.hidden_size, architecture.intermediate_size)
    while size > _LONGEST_GROUP:
        size //= 2
    return size


def int8_matrix(weight: npt.NDArray[np.float32]) -> Node:
    """`weight` [out, in] as int8 and a scale for each row, multiplied in the graph: the plugin's pattern for int8.

    Raises:
        EngineError: the weight is not finite. In floats its vectors would not be either, and the guard would see it;
            rounding to int8 makes finite numbers of anything.
    """
    if not np.isfinite(weight).all():
        raise EngineError("a weight is not finite, and int8 would hide it: download the model again")
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1  # a row of zeros
    rounded = np.rint(weight / scale).astype(np.int8)
    return op.multiply(op.convert(op.constant(rounded), "f32"), op.constant(scale))

"""What `transfer` takes of a driver, without one: pages and a delivery of the host's own memory."""

from typing import Any

import mlx.core as mx
import numpy as np


class PlainPages:
    """Host pages without a driver."""

    def __init__(self, kind: Any, size: int):
        self.array = mx.array(np.zeros(size, kind))
        self.host = np.asarray(self.array)

    def close(self) -> None:
        self.host = np.zeros(0)


def deliver_at_once(vectors: mx.array, target: mx.array) -> mx.array:
    np.asarray(target)[: vectors.size] = np.array(vectors).reshape(-1)
    return mx.zeros(vectors.shape)

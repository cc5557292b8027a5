"""The contract between the pipeline and a device: packed token batches in, pooled vectors out, in the same order."""

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from fletcher_core.tokens import TokenBatch

Precision = Literal["auto", "bf16", "fp32"]


class Engine(Protocol):
    """One model on one device.

    `name` and `device` are for people; `precision` is what the device computes in; `dimension` is the vectors' length.
    `token_budget` is the batch size, in tokens with padding, that this engine runs best, and `length_multiple` the
    number of tokens that it rounds a padded length up to.
    """

    name: str
    device: str
    precision: str
    dimension: int
    token_budget: int
    length_multiple: int

    def run(self, batches: Iterable[TokenBatch]) -> Iterator[npt.NDArray[np.float32]]:
        """Yield float32 `[len(batch), dimension]` for each batch, in order; several batches are in flight at a time.

        `batches` is drawn from lazily, so that a generator may tokenize while the device computes. Closing the iterator
        early waits for what is in flight and drops it. One caller at a time.

        Raises:
            EngineError: the device failed.
        """
        ...

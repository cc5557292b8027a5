"""The contract between the pipeline and a device: packed token batches in, pooled vectors out, in the same order."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fletcher_core.batching import Batching
from fletcher_core.stop import NEVER, Stop
from fletcher_core.tokens import TokenBatch


class Engine(Protocol):
    """One model on one device.

    `name` and `device` are for people; `precision` is what the device computes in; `dimension` is the vectors' length;
    `ahead` is how many batches `run` draws before it yields the vectors of the first.
    """

    name: str
    device: str
    precision: str
    dimension: int
    ahead: int

    @property
    def batching(self) -> Batching:
        """How sequences are put together for this device, as of now: an engine may learn."""
        ...

    def device_memory(self) -> dict[str, int]:
        """Bytes by kind, as of now or of the last batch: "active", "cache" and "peak" of a GPU; of a CPU "resident", of
        the process that computes, or its "peak" where the system says no more. From any thread."""
        ...

    def run(self, batches: Iterable[TokenBatch], stop: Stop = NEVER) -> Iterator[npt.NDArray[np.float32]]:
        """Yield float32 `[len(batch), dimension]` for each batch, in order; several batches are in flight at a time.

        `batches` is drawn from lazily, so that a generator may tokenize while the device computes. Closing the iterator
        early waits for what is in flight and drops it. One caller at a time.

        Raises:
            EngineError: the device failed; which of the batches in flight it was is not known.
            RunCancelled, DeadlineExceeded: `stop` says so; nothing more is sent to the device.
        """
        ...

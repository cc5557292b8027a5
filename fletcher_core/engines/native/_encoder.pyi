from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

def supported() -> bool: ...
def has_amx() -> bool: ...

class Encoder:
    def __init__(
        self,
        sizes: dict[str, object],
        layers: Sequence[Sequence[Array | None]],
        words: Array,
        positions: Array | None,
        norm: Array,
        norm_bias: Array,
        cosines: Array | None,
        sines: Array | None,
    ) -> None: ...
    def start(self, threads: int) -> None: ...
    def wake(self) -> None: ...
    def run(
        self,
        ids: npt.NDArray[np.int32],
        cu_seqlens: npt.NDArray[np.int32],
        out: Array,
        together: bool,
        seconds: npt.NDArray[np.float64] | None = None,
    ) -> None: ...

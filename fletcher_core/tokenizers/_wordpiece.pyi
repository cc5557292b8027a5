from typing import Any

import numpy as np
import numpy.typing as npt

REFERENCE_VERSION: str

def implementations() -> list[str]: ...

class Tokenizer:
    def __init__(
        self,
        *,
        vocabulary: dict[str, int],
        continuing_prefix: str,
        unknown: int,
        max_characters: int,
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: bool,
        lowercase: bool,
        added: list[tuple[str, int, bool, bool, bool]],
        added_normalized: list[tuple[str, int, bool, bool, bool]],
        prefix: list[int],
        suffix: list[int],
        implementation: str = "",
    ) -> None: ...
    @property
    def implementation(self) -> str: ...
    def normalize(self, text: str) -> str: ...
    def encode(
        self,
        texts: Any,
        *,
        prompt: str = "",
        special_tokens: bool = True,
        max_length: int = -1,
        keep_tail: bool = False,
        threads: int = 1,
        digests: bool = False,
    ) -> tuple[
        npt.NDArray[np.int32],
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.uint8] | None,
        list[tuple[int, int]],
    ]: ...

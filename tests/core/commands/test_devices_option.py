"""`--devices`: a number, or the numbers of some."""

import pytest

from fletcher_core.commands.options import devices_of
from fletcher_core.errors import ConfigError


@pytest.mark.parametrize(
    ("said", "devices"), [(None, None), ("2", 2), ("0,1", [0, 1]), (" 3 , 0 ", [3, 0]), ("1,", [1]), ("007", 7)]
)
def test_what_is_said_is_what_the_embedder_takes(said: str | None, devices: int | list[int] | None) -> None:
    assert devices_of(said) == devices


@pytest.mark.parametrize("said", ["", ",", "-1", "all", "0,,1", "0;1", "1.5", "\u0662"])
def test_anything_else_is_refused_in_words(said: str) -> None:
    with pytest.raises(ConfigError, match="give how many, as 2, or the numbers of some, as 0,1"):
        devices_of(said)

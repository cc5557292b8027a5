"""R5: the proof that honest kernels pass finds every seeded fault, on the build and in the way that it should."""

from collections.abc import Callable

import pytest

pytest.importorskip("mlx.core", reason="the Metal text comes from MLX, which is not installed")
pytest.importorskip("ml_dtypes", reason="bfloat16 in NumPy comes from ml_dtypes, which is not installed")

from emulator import Build, CompileError, EmulatorError
from fletcher_kernels import KERNELS
from fletcher_kernels.kernel import Kernel
from mutants import MUTANTS, How, Mutant
from proof import Disagreement, Text, Wrong, metal_cases, prove


def found(kernel: Kernel, text: Text, dtype: str, build: Build) -> tuple[How | None, str]:
    """How the first case that finds a fault finds it, and its words."""
    for case in metal_cases(kernel.name):
        try:
            prove(kernel, case, dtype, build, text)
        except CompileError as error:
            return "compile", str(error)
        except EmulatorError as error:
            return "emulator", str(error)
        except Disagreement as error:
            return "schedules", str(error)
        except Wrong as error:
            return "wrong", str(error)
    return None, ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.kernel}-{mutant.name}")
def test_a_seeded_fault_is_found(mutant: Mutant, record_property: Callable[[str, object], None]) -> None:
    kernel = KERNELS[mutant.kernel]
    how, words = found(kernel, mutant.text(kernel), mutant.dtype, mutant.build)
    record_property("mutant", [mutant.kernel, how is not None])
    assert how == mutant.caught, words


@pytest.mark.parametrize("build", Build, ids=lambda build: build.value)
@pytest.mark.parametrize("name", KERNELS)
def test_an_honest_kernel_passes(name: str, build: Build) -> None:
    kernel = KERNELS[name]
    assert found(kernel, Text.of(kernel), "float16", build) == (None, "")


def test_every_kernel_has_mutants() -> None:
    assert {mutant.kernel for mutant in MUTANTS} == set(KERNELS)


def test_a_mutant_whose_text_is_gone_does_not_count_as_found() -> None:
    with pytest.raises(ValueError, match="stands 0 times in bodies/rope"):
        Mutant("rope", "gone", "bodies/rope.k", "no such text", "", "wrong").text(KERNELS["rope"])

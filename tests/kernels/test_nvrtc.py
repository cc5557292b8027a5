"""R7, the kernels' CUDA text: NVIDIA's compiler takes every variant, and registers hold what each of them computes."""

import re
from dataclasses import dataclass

import pytest

pytest.importorskip("mlx.core", reason="the kernels' package needs MLX, which is not installed")
pytest.importorskip("ml_dtypes", reason="bfloat16 in NumPy comes from ml_dtypes, which is not installed")

import nvrtc
from fletcher_kernels import KERNELS
from proof import typed

pytestmark = [
    pytest.mark.skipif(nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc"),
    pytest.mark.xdist_group("nvrtc"),  # on one worker, which compiles CUDA's headers once
]

# Of 65536: twelve warps of attention at a time on sm_90a, ten or more on sm_80; of others a threadgroup of 256 threads.
MOST_REGISTERS = {("attention", "sm_90a"): 168, ("attention", "sm_80"): 176}
_NAMESPACE = "namespace mlx::core::cu {\n"
_FUNCTION = re.compile(
    r"Compiling entry function '[^']*?kernel_?(?P<index>\d+)?(?:E|P|\b)[^']*' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Function:
    """What the assembler says of one variant."""

    stack_bytes: int
    spilled_bytes: int
    registers: int
    shared_bytes: int


def texts(kernel: str) -> dict[str, str]:
    """Variant -> its CUDA text, each once, in both half precisions."""
    found: dict[str, str] = {}
    for case in KERNELS[kernel].cases("cuda"):
        for dtype in ("float16", "bfloat16"):
            text = nvrtc.cuda_text(KERNELS[kernel], typed(case, dtype), case.static)
            if text not in found.values():
                found[f"{case.name}, {dtype}"] = text
    return found


def together(variants: list[str]) -> str:
    """One text of them all: most of a compilation is CUDA's own headers."""
    numbered = (text.split(_NAMESPACE, 1)[1].replace(" kernel(", f" kernel_{i}(") for i, text in enumerate(variants))
    return variants[0] + "".join(_NAMESPACE + text for text in list(numbered)[1:])


def compiled(text: str, architecture: str) -> dict[int, Function]:
    """Variant's number -> what the assembler says of it."""
    functions = {}
    for said in _FUNCTION.finditer(nvrtc.compile_cuda(text, architecture).log):
        assert said["architecture"] == architecture
        shared = re.search(r"(\d+) bytes smem", said["rest"])
        functions[int(said["index"] or 0)] = Function(
            stack_bytes=int(said["stack"]),
            spilled_bytes=int(said["stores"]) + int(said["loads"]),
            registers=int(said["registers"]),
            shared_bytes=int(shared[1]) if shared else 0,
        )
    return functions


@pytest.mark.parametrize("architecture", ["sm_90a", "sm_80"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_variant_compiles_into_registers(kernel: str, architecture: str) -> None:
    variants = texts(kernel)
    functions = compiled(together(list(variants.values())), architecture)
    assert sorted(functions) == list(range(len(variants)))
    for index, name in enumerate(variants):
        function = functions[index]
        assert (function.stack_bytes, function.spilled_bytes) == (0, 0), f"local memory in {name}: {function}"
        assert 0 < function.registers <= MOST_REGISTERS.get((kernel, architecture), 255), f"{name}: {function}"
        assert function.shared_bytes <= 48 * 1024, f"{name}: {function}"


def test_local_memory_is_seen() -> None:
    text = nvrtc.expanded(next(iter(texts("rope").values())))
    array = "float many[64] = {};\n for (int j = 0; j < 64; j++) many[positions[j] & 63] += float(j);\n"
    faulty = text.replace("k_store4(to, ", array + "k_store4(to, k_splat4(many[i % 64u]) + ")
    assert faulty != text
    assert compiled(faulty, "sm_80")[0].stack_bytes >= 256


def test_what_does_not_compile_is_told_in_the_compiler_s_words() -> None:
    text = nvrtc.expanded(next(iter(texts("rope").values())))
    with pytest.raises(nvrtc.NvrtcError, match="no_such_name"):
        nvrtc.compile_cuda(text.replace("k_store4(to, ", "k_store4(no_such_name, "))

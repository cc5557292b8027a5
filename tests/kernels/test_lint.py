"""R0, the lint: our bodies and the Metal dialect are clean, and each rule finds what it is for."""

from importlib.resources import files

import pytest

pytest.importorskip("mlx.core", reason="the kernels' package needs MLX, which is not installed")

from fletcher_kernels import KERNELS
from fletcher_kernels.lint import lint

PACKAGE = files("fletcher_kernels")
BODIES = sorted(path.name for path in PACKAGE.joinpath("bodies").iterdir())
TEXTS = [*(f"bodies/{name}" for name in BODIES), "dialect/metal.h", "dialect/metal_prologue.h"]

# (line, what the message says)
IN_BODIES = [
    ("float x = 1.0 * y;", "floating literal without suffix"),
    ("float x = 1e-5;", "floating literal without suffix"),
    ("float x = .5;", "floating literal without suffix"),
    ("double x = y;", "no double"),
    ("K_SHARED_ARRAY(float, parts, 8) = {0.0f};", "no initialiser"),
    ("K_SHARED_ARRAY(float, parts, 4 * (D + 8)){};", "no initialiser"),
    ("K_SHARED float parts[8];", "other than by K_SHARED_ARRAY"),
    ("threadgroup float parts[8];", "not a name of the dialect: threadgroup"),
    ("__shared__ float parts[8];", "not a name of the dialect: __shared__"),
    ("const device T* from = x;", "not a name of the dialect: device"),
    ("const int i = threadIdx.x;", "not a name of the dialect: threadIdx"),
    ("const uint i = thread_index_in_threadgroup;", "not a name of the dialect: thread_index_in_threadgroup"),
    ("sum = simd_sum(sum);", "not a name of the dialect: simd_sum"),
    ("__syncthreads();", "not a name of the dialect: __syncthreads"),
    ("half x = y;", "not a name of the dialect: half"),
    ("const T* from = x + i;", "carries K_GLOBAL or K_SHARED"),
    ("const T *from = x + i;", "carries K_GLOBAL or K_SHARED"),
    ("y = *(float4*)x;", "carries K_GLOBAL or K_SHARED"),
    ("k_frag_a<T>* p = q;", "carries K_GLOBAL or K_SHARED"),
    ("float& first = v[0];", "carries K_GLOBAL or K_SHARED"),
    ("goto end;", "no goto"),
    ("if (i > 3) return; K_BARRIER();", "no return in a body with barriers"),
    ("throw 1;", "no exceptions"),
    ("auto f = [&](int i) { return i; };", "no lambdas"),
    ("float* p = new float[3];", "no new"),
    ("#define N 3", "no preprocessor"),
    ("// caf\N{LATIN SMALL LETTER E WITH ACUTE}", "only ASCII"),
    ("x = " + "y + " * 40 + "y;", "120 at most"),
]
IN_THE_DIALECT = [
    ("METAL_FUNC float k_half(float x) { return x * 0.5; }", "floating literal without suffix"),
    ("METAL_FUNC int k_down(int n) { return n ? k_down(n - 1) : 0; }", "no recursion: k_down"),
    (
        "template <typename T> METAL_FUNC T k_down(T n) {\n  return n ? k_down<T>(n - T(1)) : n;\n}",
        "no recursion: k_down",
    ),
    ("threadgroup float parts[8] = {0.0f};", "no initialiser"),
    ("METAL_FUNC float k_load(const float* p) { return p[0]; }", "carries its address space"),
    ("METAL_FUNC void k_set(k_frag_c& c) { c = 0.0f; }", "carries its address space"),
    ("struct Fragment { virtual int size(); };", "no virtual"),
]
FINE = [
    "const float scale = 1.4426950408889634f * k_rsqrt(float(D)) * 1.0e-5f + 0x1e5 * .5f;",
    "const K_GLOBAL T* from = x + row * size_t(D);  // one device pointer, 0.5 of a row; goto is a word here",
    "const bool both = a && b; const int bits = a & b; float y = row * stride; y = f(a * b, c);",
    "K_SHARED_ARRAY(T, kv, 2 * KEYS * LD);",
    "K_SHARED float* part = parts + c; part[0] = sum.x;",
]


def read(name: str) -> str:
    return PACKAGE.joinpath(name).read_text("utf-8")


@pytest.mark.parametrize("name", TEXTS)
def test_our_texts_are_clean(name: str) -> None:
    assert lint(read(name), name) == []


def test_every_body_belongs_to_a_kernel() -> None:
    assert {f"{body}.k" for kernel in KERNELS.values() for body in kernel.bodies} == set(BODIES)


@pytest.mark.parametrize(("line", "message"), IN_BODIES)
def test_a_rule_for_bodies_finds_its_line(line: str, message: str) -> None:
    faults = lint(f"  const int i = 0;\n  {line}\n", "seeded.k")
    assert any(fault.startswith("seeded.k:2: ") and message in fault for fault in faults), faults


@pytest.mark.parametrize(("line", "message"), IN_THE_DIALECT)
def test_a_rule_for_the_dialect_finds_its_line(line: str, message: str) -> None:
    faults = lint(f"using namespace metal;\n{line}\n", "seeded.h")
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize("line", FINE)
def test_what_is_allowed_is_not_found(line: str) -> None:
    assert lint(f"  {line}\n", "fine.k") == []

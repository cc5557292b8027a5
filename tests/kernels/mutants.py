"""Faults, seeded one at a time into a kernel's text: what the proof of the honest kernels must find.

Each is a replacement of text that stands once in its file, with the build that should find it and how: by the compiler
("compile"), by the emulator at run time ("emulator"), by another order of the threads ("schedules"), or because the
result is not the reference's ("wrong").
"""

from dataclasses import dataclass, field
from typing import Literal

from emulator import Build
from fletcher_kernels.build import read
from fletcher_kernels.kernel import Kernel
from proof import Text

How = Literal["compile", "emulator", "schedules", "wrong"]


@dataclass(frozen=True)
class Mutant:
    """`old`, which stands once in `file`, becomes `new`."""

    kernel: str
    name: str
    file: str = field(repr=False)
    old: str = field(repr=False)
    new: str = field(repr=False)
    caught: How
    build: Build = Build.STRICT
    dtype: str = "float16"

    def text(self, kernel: Kernel) -> Text:
        """The kernel's text with the fault.

        Raises:
            ValueError: the text to replace does not stand in the file just once.
        """
        whole, honest = read(self.file), Text.of(kernel)
        if whole.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {whole.count(self.old)} times in {self.file}, not once")
        faulty = Text(
            honest.header.replace(whole, whole.replace(self.old, self.new)),
            honest.source.replace(whole, whole.replace(self.old, self.new)),
        )
        if faulty == honest:
            raise ValueError(f"{self.name}: {self.file} is no part of {kernel.name}")
        return faulty


def _attention(name: str, old: str, new: str, caught: How, build: Build = Build.STRICT) -> Mutant:
    return Mutant("attention", name, "bodies/attention.k", old, new, caught, build)


def _dialect(name: str, old: str, new: str, caught: How, build: Build = Build.STRICT) -> Mutant:
    return Mutant("attention", name, "dialect/metal.h", old, new, caught, build)


def _pool(name: str, old: str, new: str, caught: How, build: Build = Build.STRICT) -> Mutant:
    return Mutant("pool", name, "bodies/pool.k", old, new, caught, build)


def _norm(name: str, old: str, new: str, caught: How, dtype: str = "float16") -> Mutant:
    return Mutant("add_norm", name, "bodies/layer_norm.k", old, new, caught, dtype=dtype)


def _add(name: str, old: str, new: str, caught: How) -> Mutant:
    return Mutant("add_norm", name, "bodies/add_norm.k", old, new, caught)


def _embed(name: str, old: str, new: str, caught: How) -> Mutant:
    return Mutant("embed_norm", name, "bodies/embed_norm.k", old, new, caught)


def _rope(name: str, old: str, new: str, caught: How, build: Build = Build.STRICT) -> Mutant:
    return Mutant("rope", name, "bodies/rope.k", old, new, caught, build)


def _swiglu(name: str, old: str, new: str, caught: How, build: Build = Build.STRICT) -> Mutant:
    return Mutant("swiglu", name, "bodies/swiglu.k", old, new, caught, build)


def _activate(
    name: str, old: str, new: str, caught: How, dtype: str = "float16", build: Build = Build.STRICT
) -> Mutant:
    return Mutant("activate", name, "bodies/activate.k", old, new, caught, build, dtype)


MUTANTS: tuple[Mutant, ...] = (
    # Barriers, and who reaches them
    _attention("no barrier after the keys", "K_BARRIER();\n    const int key0", "const int key0", "schedules"),
    _attention("no barrier before the next keys", "K_BARRIER();\n  }\n\n  // By", "}\n\n  // By", "schedules"),
    _attention("no barrier before the rows leave", "K_SIMD_BARRIER();\n", "", "schedules"),
    _attention(
        "a barrier for some only",
        "K_BARRIER();\n    const int key0",
        "if (first < length) K_BARRIER();\n    const int key0",
        "emulator",
    ),
    _attention(
        "a return before a barrier",
        "k_frag_a<T, M> q[DEPTH];",
        "if (first >= length) return; k_frag_a<T, M> q[DEPTH];",
        "emulator",
    ),
    _attention(
        "a row's maximum among some only",
        "const float high = k_row_max(best[r]);",
        "float high = best[r];\n            if (column < 4) high = k_row_max(best[r]);",
        "emulator",
    ),
    _attention("rescaled by some lanes only", "if (k_simd_any(grew)) {", "if (grew) {", "emulator"),
    _pool("no barrier after the parts", "K_BARRIER();\n\n  const float share", "const float share", "schedules"),
    _pool("no barrier after the norms", "K_BARRIER();\n  squares", "squares", "schedules"),
    _pool(
        "a barrier for some lanes only",
        "K_BARRIER();\n  squares",
        "if (k_lane < 16u) K_BARRIER();\n  squares",
        "emulator",
    ),
    _norm(
        "a sum among some lanes only",
        "const float mean = k_simd_sum(sum) *",
        "float mean = 0.0f;\n  if (int(k_lane) * 4 < D) mean = k_simd_sum(sum) *",
        "emulator",
    ),
    # Threadgroup memory
    _attention("more than 32 KB of shared memory", "D > 64 ? 32 : 64", "64", "emulator"),
    _attention(
        "rows of shared memory at odd halves of 16 bytes", "LD = D + 8;", "LD = D + 4;", "emulator", Build.ERASED
    ),
    _attention("a shared pointer kept as a device pointer", "K_SHARED T* keys", "K_GLOBAL T* keys", "compile"),
    _dialect(
        "shared arrays aligned as their elements", "alignas(16) threadgroup", "threadgroup", "emulator", Build.ERASED
    ),
    _attention("values on top of keys", "values = keys + KEYS * LD;", "values = keys;", "wrong"),
    _attention("values past the sequence left unset", "k_copy8(to + (KEYS", "if (inside) k_copy8(to + (KEYS", "wrong"),
    _pool("room for eight SIMD-groups where four run", "parts, SIMDS * DIM", "parts, 8 * DIM", "emulator"),
    _pool("a shared slot that nobody wrote", "if (k_lane == 0u)", "if (k_lane == 0u && k_simd < 7u)", "wrong"),
    # Fragments
    _attention("half in a float fragment", "k_frag_b<T> kt[2];", "k_frag_b<float> kt[2];", "compile"),
    _dialect("keys not transposed", "ulong2(0, 0), true)", "ulong2(0, 0), false)", "wrong"),
    _dialect(
        "a sum over the wrong lanes",
        "x += simd_shuffle_xor(x, ushort(1));",
        "x += simd_shuffle_xor(x, ushort(2));",
        "wrong",
    ),
    _dialect("rows of the wrong lanes", "((lane / 4u) & 4u)", "((lane / 8u) & 4u)", "wrong"),
    # Attention's arithmetic
    _attention("one key too many", "column + e < length) continue", "column + e <= length) continue", "wrong"),
    _attention("no mask", "if (key0 + part + PART > length) {", "if (false) {", "wrong"),
    _attention(
        "one row too many", "first + row < length) k_copy8_out", "first + row <= length) k_copy8_out", "emulator"
    ),
    _attention("one key block too few", "next < length + AHEAD;", "next < length - 1 + AHEAD;", "wrong"),
    _attention(
        "keys read past the array",
        "const bool inside = next + row0 + row < length;",
        "const bool inside = true;",
        "emulator",
    ),
    _dialect("queries read past the array", "if (row < rows)", "if (true)", "emulator"),
    _attention("a tile for each threadgroup", "k_group.x / uint(H) * 4u", "k_group.x * 4u", "emulator"),
    _attention("the wrong stride of values", "v_row = 3 * H * D", "v_row = 2 * H * D", "wrong"),
    _attention("the wrong part as values", "(2 * H + head) * D + chunk", "(1 * H + head) * D + chunk", "wrong"),
    _attention("one head for all", "size_t(qk_row) + size_t(head * D)", "size_t(qk_row)", "wrong"),
    _attention("the running maximum is not kept", "top[r] = high;", "", "wrong"),
    _attention(
        "the accumulator does not fade", "k_frag_get(acc[d], r, e) * fade)", "k_frag_get(acc[d], r, e))", "wrong"
    ),
    _attention("the total does not fade", "total[r] = total[r] * fade;", "", "wrong"),
    _attention("no scale", "* scale - offset", "- offset", "wrong"),
    _attention(
        "no maximum taken off",
        "const float offset = top[r] * scale;",
        "const float offset = 0.0f;",
        "wrong",
    ),
    _attention("no rescaling after the first keys", "8.0f / scale", "1.0e4f / scale", "wrong"),
    # Norms
    _norm("the mean is not taken off", "v[i] = v[i] - mean;", "", "wrong"),
    _norm("no epsilon", " + params[0]", "", "wrong", dtype="float32"),
    _norm("the squares of one lane", "k_simd_sum(squares)", "squares", "wrong"),
    _norm("lanes past the width add their mean", "if ((i * 32 + int(k_lane)) * 4 < D) {", "{", "wrong"),
    _add("no bias", "if (HAS_BIAS)", "if (!HAS_BIAS)", "wrong"),
    _add("the next row", "size_t(k_simd);", "size_t(k_simd) + size_t(1);", "emulator"),
    _add("reads past the row", "if (c < D) {", "{", "emulator"),
    _embed("positions count over the batch", "int(row) - cu_seqlens[low]", "int(row)", "emulator"),
    _embed(
        "a boundary belongs to the sequence before",
        "cu_seqlens[middle] <= int(row)",
        "cu_seqlens[middle] < int(row)",
        "wrong",
    ),
    _embed("no places", "if (HAS_PLACES)", "if (!HAS_PLACES)", "wrong"),
    _embed("positions not written", "if (k_lane == 0u)", "if (k_lane == 32u)", "wrong"),
    _embed("the place of the word", "words + word + size_t(c)", "words + place + size_t(c)", "wrong"),
    # Rotation
    _rope("halves swapped", "right * cosine + left * sine", "left * cosine + right * sine", "wrong"),
    _rope("turned the other way", "left * cosine - right * sine", "left * cosine + right * sine", "wrong"),
    _rope("the position of the row", "positions[token]", "token % 8u", "wrong"),
    _rope("a misaligned load", "k_load4(from + HALF)", "k_load4(from + HALF - 1)", "emulator", Build.ERASED),
    _rope("values turned too", "token * size_t(3 * H)", "token * size_t(3 * H) + size_t(H)", "wrong"),
    # Gate
    _swiglu(
        "gate and up swapped",
        "g = k_load4(row + part), u = k_load4(row + F + part)",
        "u = k_load4(row + part), g = k_load4(row + F + part)",
        "wrong",
    ),
    _swiglu("a double literal", "y.x = g.x / (1.0f", "y.x = g.x / (1.0", "compile"),
    _swiglu("half of the columns unwritten", "part < 8;", "part < 4;", "wrong"),
    _swiglu("a misaligned store", "k_store4(to + part, y)", "k_store4(to + part + 1, y)", "emulator", Build.ERASED),
    # Activation
    _activate(
        "GELU's powers in the wrong order",
        "p * t + k_splat4(7.29398616e-2f)",
        "p + t * k_splat4(7.29398616e-2f)",
        "wrong",
    ),
    _activate(
        "a wrong coefficient of GELU", "k_splat4(-2.50952447e-4f)", "k_splat4(-3.50952447e-4f)", "wrong", "float32"
    ),
    _activate("GELU for the form with tanh", "if (KIND == 1)", "if (KIND == 0)", "wrong"),
    _activate("the cube of x left out", "t * 0.044715f + k_splat4(1.0f)", "k_splat4(1.0f)", "wrong"),
    _activate("SiLU for ReLU", "if (KIND == 2)", "if (KIND == 4)", "wrong"),
    _activate("ReLU the other way", "v.z < 0.0f ?", "v.z > 0.0f ?", "wrong"),
    _activate(
        "NaN where exp overflows",
        "v.w / (1.0f + k_exp(-logit.w))",
        "v.w * (1.0f - k_exp(-logit.w) / (1.0f + k_exp(-logit.w)))",
        "wrong",
    ),
    _activate("a double literal", "y.x = v.x / (1.0f", "y.x = v.x / (1.0", "compile"),
    _activate("half of the elements unwritten", "part < 8;", "part < 4;", "wrong"),
    _activate("threads that overlap by half", "* size_t(8);", "* size_t(4);", "wrong"),
    _activate("a threadgroup too far", "size_t(k_group.x)", "size_t(k_group.x + 1u)", "emulator"),
    _activate(
        "a misaligned store",
        "k_store4(out + at + size_t(part), y)",
        "k_store4(out + at + size_t(part + 1), y)",
        "emulator",
        build=Build.ERASED,
    ),
    # Pooling
    _pool("the unsound flag inverted", "sound ? 0 : 1", "sound ? 1 : 0", "wrong"),
    _pool("NaN passed over", "k_finite(squares) && squares > 0.0f", "!(squares <= 0.0f || squares > 3.0e38f)", "wrong"),
    _pool("a vector without length passed over", " && squares > 0.0f", "", "wrong"),
    _pool("one row too few", "t < to;", "t < to - 1;", "wrong"),
    _pool("one row too many", "t < to;", "t <= to;", "wrong"),
    _pool("the first token for the last", "POOLING == 2 ? end - 1", "POOLING == 2 ? begin", "wrong"),
    _pool("the share of the whole sequence", "float(to - from)", "float(end - begin)", "wrong"),
    _pool("one SIMD-group's sums left out", "s < SIMDS; s++) mine", "s < SIMDS - 1; s++) mine", "wrong"),
    _pool("the width of the output as the input's", "size_t(t) * size_t(D)", "size_t(t) * size_t(DIM)", "wrong"),
    _pool("normalized against its will", "NORMALIZE && sound", "sound", "wrong"),
    _pool("the last element unwritten", "if (c < DIM) out", "if (c < DIM - 1) out", "wrong"),
)

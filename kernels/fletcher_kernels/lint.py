"""Rules for bodies and the Metal dialect that no compiler on Linux enforces: Metal's own bans, and the dialect's names.

In: the text of a body (`*.k`) or of the Metal dialect (`*.h`). Out: what is wrong with it, line by line.
"""

import re

Rule = tuple[re.Pattern[str], str]

_NAME = r"[A-Za-z_]\w*"
_TYPE = rf"{_NAME}(?:::{_NAME})*(?:<[\w:, ]*>)?"

# An unsuffixed literal is a double, which Metal has not.
_LITERAL = re.compile(r"(?<![\w.])(?:(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)(?![\w.])")

_EVERYWHERE: tuple[Rule, ...] = (
    (_LITERAL, "a floating literal without suffix; write 1.0f"),
    (re.compile(r"\bdouble\b"), "Metal has no double"),
    (re.compile(r"\bgoto\b"), "Metal has no goto"),
    (re.compile(r"\bvirtual\b"), "Metal has no virtual functions"),
    (re.compile(r"\b(?:try|catch|throw)\b"), "Metal has no exceptions"),
    (re.compile(r"\b(?:new|delete)\b"), "Metal has no new and delete"),
    (re.compile(r"\b(?:dynamic_cast|typeid)\b"), "Metal has no run-time types"),
    (re.compile(r"\[[&=]?\]\s*(?:\([^()]*\)\s*)?(?:->\s*\w+\s*)?\{"), "no lambdas: Metal has them from 3.2 on only"),
    (re.compile(r"\b(?:long|size_t|ulong) long\b|\blong double\b"), "Metal has no long long and no long double"),
    (
        re.compile(rf"(?:\bK_SHARED_ARRAY\s*\([^;=]*\)|\bthreadgroup\s+{_TYPE}\s+\w+\s*(?:\[[^\]]*\])+)\s*[={{]"),
        "Metal has no initialiser for threadgroup memory",
    ),
)

_OTHER_NAMES = (
    # address spaces and functions of either language, which have names in the dialect
    "device|constant|threadgroup|thread|threadgroup_barrier|mem_flags|METAL_FUNC|simdgroup_matrix|as_type",
    r"simd_\w+|quad_\w+|simdgroup_(?:load|store|multiply\w*|barrier|async\w*)|simdgroup_\w+8x8|\w+_in_\w*(?:grid|group)",
    "__shared__|__device__|__global__|__constant__|__syncthreads|__syncwarp|__ldg|__restrict__|__forceinline__",
    r"__shfl\w*|__half\w*|__nv_\w+|threadIdx|blockIdx|blockDim|gridDim|warpSize|asm|rsqrtf|fmaxf|fminf|expf|exp2f|__expf",
    "half|bfloat|float16_t|bfloat16_t|atomic_\\w+|atomicAdd|metal|cuda|cg",
)
_IN_BODIES: tuple[Rule, ...] = (
    (re.compile(rf"(?<![\w.])(?:{'|'.join(_OTHER_NAMES)})\b"), "not a name of the dialect"),
    (re.compile(rf"\bK_SHARED\s+{_TYPE}\s+\w+\s*\["), "a shared array other than by K_SHARED_ARRAY"),
    (re.compile(r"^\s*#"), "no preprocessor in a body"),
)

# `T* p`, `(T*)p`, `T *p`, and references alike; a product has a space on either side.
_POINTER = re.compile(
    rf"(?P<words>(?:\b(?:const|device|constant|threadgroup|thread|K_GLOBAL|K_SHARED)\s+)*)"
    rf"(?P<type>\b{_TYPE})(?:\s+const)?(?:[*&](?![*&=])|\s+[*&](?=[A-Za-z_]))\s*(?:const\s*)?"
    rf"(?:{_NAME})?\s*(?=[=;,):]|$)"
)
_SPACES = {
    "k": (r"\b(?:K_GLOBAL|K_SHARED)\b", "a pointer carries K_GLOBAL or K_SHARED"),
    "h": (r"\b(?:device|constant|threadgroup|thread)\b", "a pointer or reference carries its address space"),
}
_FUNCTION = re.compile(rf"\bMETAL_FUNC\b[^;{{}}()]*?\b(?P<name>{_NAME})\s*\(")


def lint(text: str, name: str) -> list[str]:
    """Each fault as `name:line: message`; `name` ends in `.k` for a body, in `.h` for the dialect."""
    is_body = name.endswith(".k")
    faults: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.isascii():
            faults.append((number, "only ASCII, comments too"))
        if len(line) > 120:
            faults.append((number, f"{len(line)} characters; 120 at most"))
    code = _without_comments(text)
    for number, line in enumerate(code.splitlines(), 1):
        for pattern, message in (*_EVERYWHERE, *(_IN_BODIES if is_body else ())):
            faults += [(number, f"{message}: {found[0].strip()}") for found in pattern.finditer(line)]
        faults += [(number, message) for message in _pointers(line, "k" if is_body else "h")]
        if is_body and "K_BARRIER" in code and re.search(r"\breturn\b", line):
            faults.append((number, "no return in a body with barriers: all threads must reach each of them"))
    faults += _recursions(code)
    return [f"{name}:{number}: {message}" for number, message in sorted(faults)]


def _pointers(line: str, kind: str) -> list[str]:
    wanted, message = _SPACES[kind]
    return [
        f"{message}: {found[0].strip()}"
        for found in _POINTER.finditer(line)
        if not re.search(wanted, f"{found['words']} {found['type']}") and found["type"] not in ("return", "case")
    ]


def _recursions(code: str) -> list[tuple[int, str]]:
    """Functions of the dialect that name themselves; a qualified `metal::exp` is another."""
    faults = []
    for found in _FUNCTION.finditer(code):
        start = code.find("{", found.end())
        end = _closing(code, start)
        for call in re.finditer(rf"(?<![\w:.]){found['name']}\s*(?:<[^<>;]*>\s*)?\(", code[start:end]):
            faults.append((code.count("\n", 0, start + call.start()) + 1, f"Metal has no recursion: {found['name']}"))
    return faults


def _closing(code: str, start: int) -> int:
    depth = 0
    for at in range(start, len(code)):
        depth += (code[at] == "{") - (code[at] == "}")
        if depth == 0:
            return at
    return len(code)


def _without_comments(text: str) -> str:
    """The text with blanks in place of comments, on the same lines."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.DOTALL)

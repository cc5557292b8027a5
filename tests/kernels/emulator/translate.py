"""Metal text into a C++ translation unit, by three mechanical rewrites; every line keeps its number.

- `threadgroup float part[N];` becomes a reference into the emulator's threadgroup memory, aligned as `alignas(16)`
  before it says;
- `vec<T, 4>(...)`, a constructor call that C++ has not, becomes a call of `make_vector`;
- the explicit instantiation gives the template arguments of the call that follows the text, where kernel attributes
  become the values of the running thread.
"""

import re
from dataclasses import dataclass

from .errors import EmulatorError

KERNEL_FILE = "kernel.metal"

_ELEMENTS = {
    "bool": "bool",
    "int8_t": "int8",
    "int16_t": "int16",
    "int32_t": "int32",
    "int64_t": "int64",
    "uint8_t": "uint8",
    "uint16_t": "uint16",
    "uint32_t": "uint32",
    "uint64_t": "uint64",
    "float16_t": "float16",
    "bfloat16_t": "bfloat16",
    "half": "float16",
    "float": "float32",
    "int": "int32",
    "uint": "uint32",
}

_TYPE = r"[\w:]+(?:\s*<[^;<>]*(?:<[^;<>]*>[^;<>]*)*>)?"
_BOUNDS = r"(?:\s*\[[^\[\];]*(?:\[[^\[\]]*\][^\[\]]*)*\])*"
_DECLARATION = re.compile(
    rf"(?<![\w*&(,<])(?P<indent>\s*)(?:alignas\((?P<alignment>\d+)\)[^\S\n]+)?"
    rf"threadgroup[^\S\n]+(?P<type>{_TYPE})[^\S\n]+"
    rf"(?P<names>\w+{_BOUNDS}(?:\s*,\s*\w+{_BOUNDS})*)\s*(?P<end>;|=|(?=\n))"
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_VECTOR_CALL = re.compile(r"(?<!\w)(?:metal::)?vec<([^<>,]+),\s*([^<>,]+)>\s*\(")
_KERNEL = re.compile(r"\[\[\s*kernel\b[^\]]*\]\]\s*void\s+(\w+)\s*\(")
_INSTANTIATION = re.compile(r"\ntemplate \[\[host_name\([^\n]*?decltype\((?P<call>[^\n]*?)\) [^\n]*;")
_PARAMETER = re.compile(r"(?P<declared>.*?)\s*(?P<name>\w+)\s*(?:\[\[\s*(?P<attribute>\w+).*)?", re.DOTALL)


@dataclass(frozen=True)
class Buffer:
    """A parameter that the host binds. `const device half* x`: x, device, float16, no reference, not written."""

    name: str
    address_space: str
    element: str | None  # numpy's name; None for a struct or a template parameter
    is_reference: bool
    is_written: bool


@dataclass(frozen=True)
class TranslationUnit:
    text: str
    buffers: tuple[Buffer, ...]
    cpp: str


def translate(text: str, instantiation: str | None = None) -> TranslationUnit:
    """`instantiation`, such as `softmax<float>`, is for a text that has none; else the text's own is taken."""
    wanted = instantiation.split("<")[0].strip() if instantiation else None
    kernel = next((found for found in _KERNEL.finditer(text) if wanted in (None, found[1])), None)
    if kernel is None:
        raise EmulatorError(f"the text has no [[kernel]] function {wanted or ''}")
    body, call = text, instantiation or kernel[1]
    explicit = _INSTANTIATION.search(text)
    if explicit is not None:
        body = text[: explicit.start()] + text[explicit.end() :]
        call = instantiation or explicit["call"]
    buffers: list[Buffer] = []
    arguments = [_argument(parameter, buffers) for parameter in _parameters(text, kernel.end())]
    body = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), body)
    body = _DECLARATION.sub(_threadgroup_references, body)
    body = _VECTOR_CALL.sub(r"::emulator::make_vector<\1, \2>(", body)
    cpp = (
        f'#include "msl/metal.h"\n#line 1 "{KERNEL_FILE}"\n{body}\n#line 1 "launch"\n'
        f'extern "C" void emulator_body(void* const* buffers) {{\n'
        f"  (void)buffers;\n  {call}({', '.join(arguments)});\n}}\n"
    )
    return TranslationUnit(text, tuple(buffers), cpp)


def _parameters(text: str, start: int) -> list[str]:
    """Splits at the commas that stand in no bracket, up to the parenthesis that ends the list."""
    depth, begin, found = 0, start, []
    for at in range(start, len(text)):
        character = text[at]
        if depth == 0 and character in ",)":
            found.append(text[begin:at].strip())
            begin = at + 1
            if character == ")":
                return [parameter for parameter in found if parameter]
        depth += character in "([<"
        depth -= character in ")]>"
    raise EmulatorError("the kernel's parameter list does not end")


def _argument(parameter: str, buffers: list[Buffer]) -> str:
    match = _PARAMETER.fullmatch(parameter)
    if match is None:
        raise EmulatorError(f"not a kernel's parameter: {parameter}")
    declared, name, attribute = match["declared"], match["name"], match["attribute"]
    if attribute not in ("buffer", None):
        return f"::emulator::attribute<{declared}>(::emulator::this_thread().{attribute})"
    words = re.findall(r"\w+", declared)
    space = next((word for word in words if word in ("device", "constant")), None)
    if space is None:
        raise EmulatorError(f"a buffer in no address space: {parameter}")
    element = next((_ELEMENTS[word] for word in words if word in _ELEMENTS), None)
    is_reference = declared.endswith("&")
    buffers.append(Buffer(name, space, element, is_reference, is_written=space == "device" and "const" not in words))
    kind = "ReferenceArgument" if is_reference else "PointerArgument"
    return f"::emulator::{kind}{{buffers[{len(buffers) - 1}]}}"


def _threadgroup_references(match: re.Match[str]) -> str:
    if match["end"] == "=":
        raise EmulatorError(f"Metal has no initialiser for threadgroup memory: {match[0].strip()}")
    alignment = match["alignment"] or 1
    declared = []
    for declarator in re.split(r",(?![^\[]*\])", match["names"]):
        name, bounds = re.fullmatch(r"\s*(\w+)\s*(.*?)\s*", declarator, re.DOTALL).groups()  # type: ignore[union-attr]
        if not bounds and not match["end"]:
            return match[0]  # `threadgroup T name` at the end of a line: the middle of a parameter list
        array = f"{match['type']}{bounds}"
        declared.append(f'auto& {name} = ::emulator::threadgroup_array<{array}, {alignment}>("{name}", [] {{}})')
    return match["indent"] + "; ".join(declared) + match["end"]

"""Checks the rules of the C tree that a compiler does not: which layer includes which, and who may call what.

Usage: python tests/lint/lint_layers.py [ROOT]
Prints one line per violation, exits with 1 when there are any.
"""

import re
import sys
from pathlib import Path

# A layer includes itself and those below it, never one above.
LAYERS = ("base", "format", "kernels", "ops", "backend", "model", "optim", "comm")
# The layer that a public header belongs to: itself and those above may include it.
PUBLIC_HEADERS = {
    "base": ("status.h", "process.h", "types.h", "weight_formats.h", "memory.h", "isa.h"),
    "format": ("nf4.h", "ggml.h", "weight_rows.h"),
    "ops": (
        "context.h",
        "nn.h",
        "linear.h",
        "optim.h",
        "profile.h",
        "device.h",
        "backend.h",
        "place.h",
        "quantize.h",
        "watch.h",
    ),
    "model": ("decoder.h",),
    "comm": ("comm.h", "lora_c.h"),
}
LAYER_OF_HEADER = {header: layer for layer, headers in PUBLIC_HEADERS.items() for header in headers}
PUBLIC = "lora_c/"  # "lora_c/nf4.h" is a public header, "lora_c/base/alloc.h" is not
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)

THREADS = (
    "base/os_posix.c",
    "base/os_windows.c",
    "cuda/memory.c",
    "cuda/graphs.c",
    "cuda/find_cublaslt.c",
)  # files that know threads
# files of one system each, and no others ask which it is
SYSTEMS = tuple(f"base/os_{name}.c" for name in ("posix", "posix_memory", "posix_library", "macos"))
SYSTEMS += tuple(f"base/os_{name}.c" for name in ("windows", "windows_memory", "windows_library"))
# (what, the pattern in code without comments and strings, the files that may use it)
CALLS = (
    (
        "memory from libc",
        r"(?<!->)\b(?:malloc|calloc|realloc|aligned_alloc|posix_memalign|strdup|free)\s*\(",
        ("base/os_posix_memory.c", "base/os_windows_memory.c"),
    ),
    ("threads", r"\bpthread_\w+", THREADS),
    ("printing", r"\b(?:f?printf|puts|fputs|putchar|perror)\s*\(", ()),
    ("ending the process", r"\b(?:_?exit|abort|assert)\s*\(", ()),
    ("errno", r"\berrno\b", ()),
    ("which system it is", r"\b(?:_WIN32|__APPLE__|__linux__|__ELF__|__unix__|MADV_\w+)\b", SYSTEMS),
    ("OpenMP", r"#\s*pragma\s+omp\b", ()),
    ("what one compiler knows", r"#\s*pragma\s+GCC\s+(?!diagnostic)\w+|\b_Pragma\b", ("base/util.h",)),
)
# Layers that know devices by their addresses only: what they do to memory is asked of the device.
NEUTRAL = ("model", "optim", "comm")
# A plug-in: a library of its own, which has copies of these layers and is reached through backend.h only.
PLUG_IN, PLUG_IN_LAYERS = "cuda", ("base", "format", "kernels", "cuda")
NEUTRAL_CALLS = re.compile(r"\b(?:memcpy|memmove|memset|lora_parallel_\w+|lora_pool_\w+)\s*\(")
# A struct made without the names of its fields: one field more, and it compiles and is wrong. Vectors and arrays have none.
POSITIONAL = re.compile(
    r"\((?!V\b)(?:struct )?[A-Za-z_]\w*\)\{(?![.0}\s{\\])|^[ \t]+(?:const )?(?:lora_)?[a-z]\w* \w+ = \{(?![.0}\s{])",
    re.MULTILINE,
)
MOST_PARAMETERS = 10  # of a function in a public header
MOST_LINES = 60  # of a function
# Headers that only some folders may include.
HEADERS = (
    ("intrinsics", re.compile(r"(?:\w+mmintrin|arm_neon|arm_sve)\.h$"), ("kernels/x86/", "kernels/arm/", "kernels/tmpl/")),
    ("Python", re.compile(r"Python\.h$|structmember\.h$|numpy/"), ("bindings/",)),
    (
        "threads",
        re.compile(r"pthread\.h$|threads\.h$|omp\.h$"),
        THREADS,
    ),
    ("CUDA", re.compile(r"cuda"), ("cuda/",)),
)
# One number of the NF4 table stands for all: a second copy of the table would drift.
SINGLE_SOURCE = "0.6961928"


def blank(match):
    """Replaces a comment or string by as many lines, so that line numbers stay right."""
    return "\n" * match.group().count("\n")


def layer_of(path):
    """Layer of a path relative to lora_c/ ("base", …), "public" for the public headers."""
    return "public" if path.startswith("include/") else path.split("/")[0]


def public_include_error(path, layer, header):
    """The reason why the file at path, of a layer, may not include a public header, or None."""
    if header not in LAYER_OF_HEADER:
        return f'"{header}": give it a layer in PUBLIC_HEADERS of tests/lint/lint_layers.py'
    if layer in ("bindings", PLUG_IN):
        return None
    mine = LAYER_OF_HEADER.get(path.split("/")[-1]) if layer == "public" else layer
    if mine is not None and LAYERS.index(LAYER_OF_HEADER[header]) > LAYERS.index(mine):
        return f'{mine} may not include "{PUBLIC}{header}", which declares what {LAYER_OF_HEADER[header]} does'
    return None


def include_error(path, target):
    """The reason why the file at path may not include target, or None."""
    layer = layer_of(path)
    if not target.startswith(PUBLIC):
        return None if layer == "bindings" and "/" not in target else f'"{target}": write the path from the top, "lora_c/..."'
    inner = target.removeprefix(PUBLIC)
    if "/" not in inner:
        return public_include_error(path, layer, inner)
    below = inner.split("/")[0]
    if layer == "public":
        return f'public headers include public headers only, got "{target}"'
    if layer in NEUTRAL and below not in (layer, "base"):
        return f'{layer} serves every device: it includes public headers, base/ and itself, got "{target}"'
    if layer == "bindings":
        return None if below == "bindings" else f'bindings include public headers only, got "{target}"'
    if layer == PLUG_IN:
        return None if below in PLUG_IN_LAYERS else f'{layer} includes public headers and {PLUG_IN_LAYERS}, got "{target}"'
    if below not in LAYERS or LAYERS.index(below) > LAYERS.index(layer):
        return f'{layer} may not include "{target}", which lies above it'
    mine, theirs = path.split("/"), inner.split("/")
    if layer == below == "kernels" and len(mine) == 3 and len(theirs) == 3 and theirs[1] not in (mine[1], "tmpl"):
        return f'{"/".join(mine[:2])} may not include its sibling "{target}"'
    return None


def errors_of(path, text):
    """(line number, message) for each violation in one file."""
    first = INCLUDE.search(text)
    if layer_of(path) == "bindings" and first and first[1] == "<" and first[2] != "Python.h":
        yield text.count("\n", 0, first.start(2)) + 1, f"{first[2]}: Python.h comes first, it says what system headers declare"
    for match in INCLUDE.finditer(text):
        line, (bracket, target) = text.count("\n", 0, match.start(2)) + 1, match.groups()
        if bracket == '"' and (message := include_error(path, target)):
            yield line, message
        for what, pattern, allowed in HEADERS:
            if pattern.search(target) and not path.startswith(allowed):
                yield line, f"{what}: {target} belongs in {', '.join(allowed)}"
    if layer_of(path) == "bindings":
        return  # bindings use CPython's memory and reporting; what they include is checked above
    code = COMMENT_OR_STRING.sub(blank, text)
    for what, pattern, allowed in CALLS:
        if path in allowed:
            continue
        for match in re.finditer(pattern, code):
            place = f"belongs in {', '.join(allowed)}" if allowed else "has no place in the library"
            yield code.count("\n", 0, match.start()) + 1, f"{what}: {match.group().strip('( ')} {place}"


def parameters_of(header):
    """(line number, name, number of parameters) of each function that a header without comments declares."""
    for match in re.finditer(r"\b(lora_\w+)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)[\w\s]*;", header):
        arguments = re.sub(r"\([^()]*\)", "", match[2])
        yield header.count("\n", 0, match.start()) + 1, match[1], arguments.count(",") + 1


def functions_of(code):
    """(line number, number of lines) of each function in code without comments; its body begins and ends at column 0."""
    lines = code.split("\n")
    start = None
    for number, line in enumerate(lines, 1):
        if re.match(r"[A-Za-z_]", line):
            start = number  # the first line of whatever ends with a body
        if line == "}" and start is not None:
            yield start, number - start + 1
            start = None


def shape_errors(path, text):
    """(line number, message) for functions that are too long or take too much."""
    code = COMMENT_OR_STRING.sub(blank, text)
    if layer_of(path) == "public":
        for line, name, n in parameters_of(code):
            if n > MOST_PARAMETERS:
                yield line, f"{name}: expected at most {MOST_PARAMETERS} parameters, got {n}"
    for line, n in functions_of(code):
        if n > MOST_LINES:
            yield line, f"expected functions of at most {MOST_LINES} lines, got one of {n}"
    for match in () if path.endswith((".cu", ".cuh")) else POSITIONAL.finditer(code):  # C++17 has no names in braces
        line = code.count("\n", 0, match.start()) + 1
        yield line, f"{match.group().strip()}: give the fields of a struct by name"
    if layer_of(path) in NEUTRAL:
        for match in NEUTRAL_CALLS.finditer(code):
            line = code.count("\n", 0, match.start()) + 1
            call = match.group().strip("( ")
            yield line, f"{call}: what {layer_of(path)} holds may lie on another device; ask for an operation"


def main():
    """Prints what it found and returns the exit status."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]) / "lora_c"
    files = sorted(p for p in root.rglob("*") if p.suffix in (".c", ".h", ".cu", ".cuh"))
    found, tables = [], []
    for file in files:
        path, text = file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
        found += [f"lora_c/{path}:{line}: {message}" for line, message in (*errors_of(path, text), *shape_errors(path, text))]
        tables += [path] * text.count(SINGLE_SOURCE)
    if tables != ["format/nf4_codebook.h"]:
        found.append(f"{SINGLE_SOURCE}: expected once, in format/nf4_codebook.h, got {tables}")
    print("\n".join([*found, f"lint_layers: {len(files)} files, {len(found)} violations"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

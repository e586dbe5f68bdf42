"""The wrong versions of the kernels: what is changed, where, and how all of them are put into one build.

A mutant is one condition or barrier: `__syncthreads();` and `__syncwarp();` go, a bounds check (`if (i >= n) return;`,
`if (k < n) ...`, `bool inside = r < n;`, `i < n ? x[i] : 0`) is taken as passed, each part of an `&&` or `||` for itself.
`embedded` writes all of a file's mutants into it at once, each behind `lora_mutant(number)` (mutant.h), so that one build
serves all.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

BARRIER = re.compile(r"__sync(?:threads|warp)\([^)]*\)(?=;)")
LEAVES = re.compile(r"\bif \((?P<guard>[^;{]*[<>][^;{]*)\) (?:return|continue|break)\b")
GUARDS = re.compile(
    r"\bif \((?P<guard>(?:[^()]|\((?:[^()]|\([^()]*\))*\))*[<>](?:[^()]|\([^()]*\))*)\)(?! (?:return|continue|break))"
)
NAMED = re.compile(r"\bbool \w+ = (?P<guard>[^;?]*[<>][^;?]*);")
ACCESS = re.compile(r"(?<![\w.>])(?P<guard>[\w.+\- ]+ [<>]=? [\w.+\-]+) \? [^:;]*\[")


@dataclass(frozen=True)
class Mutant:
    """One change of one line."""

    file: str
    line: int
    source: str  # the line
    start: int
    end: int  # of what is changed in it
    goes: bool  # a barrier that goes
    value: bool = False  # else a condition with this value
    nth: int = 1  # of those of the file with the same text

    @property
    def changed(self) -> str:
        """Return the line with the change made for good, to be read."""
        return (self.source[: self.start] + ("" if self.goes else str(self.value).lower()) + self.source[self.end :]).strip()

    @property
    def key(self) -> str:
        """What it is called in lists: the file and what was changed, without the line's number, which moves."""
        return f"{self.file}: {self.source.strip()} -> {self.changed}" + (f" ({self.nth})" if self.nth > 1 else "")

    def switched(self, number: int) -> str:
        """Return what stands in the place of the text, which is changed where `number` is the mutant chosen."""
        text = self.source[self.start : self.end]
        if self.goes:
            return f"lora_mutant({number}) ? (void)0 : {text}"
        return f"(lora_mutant({number}) || ({text}))" if self.value else f"(!lora_mutant({number}) && ({text}))"


def parts(text: str, start: int, operator: str) -> list[tuple[int, int]]:
    """Return begin and end of what an operator joins outside parentheses."""
    depth, begin, spans = 0, 0, []
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if depth == 0 and text[i : i + 2] == operator:
            spans.append((begin, i))
            begin = i + 2
    spans.append((begin, len(text)))
    return [(start + b + len(text[b:e]) - len(text[b:e].lstrip()), start + b + len(text[b:e].rstrip())) for b, e in spans]


def changes_of(line: str) -> list[tuple[int, int, bool, bool]]:
    """Return (start, end, whether it is a barrier, value of a condition) of what can be changed in a line."""
    found = [(m.start(), m.end(), True, False) for m in BARRIER.finditer(line)]
    for pattern, operator, value in ((LEAVES, "||", False), (GUARDS, "&&", True), (NAMED, "&&", True), (ACCESS, "&&", True)):
        for m in pattern.finditer(line):
            for begin, end in parts(m["guard"], m.start("guard"), operator):
                text = line[begin:end].replace("->", ".").replace(">>", "").replace("<<", "")
                if re.search("[<>]", text) and not any(begin < e and b < end for b, e, _, _ in found):
                    found.append((begin, end, False, value))
    return sorted(found)


def mutants_of(path: Path) -> list[Mutant]:
    """Return the mutants of a file, in its order."""
    found: list[Mutant] = []
    seen: Counter[tuple[str, str]] = Counter()
    in_kernel = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if re.match(r"(template .*)?(__global__|__device__|static __device__)", line) or "__device__ __forceinline__" in line:
            in_kernel = True
        elif re.match(r"(static )?(lora_status|bool|int64_t|dim3)\b", line):
            in_kernel = False  # code of the host
        if not in_kernel or line.lstrip().startswith(("//", "*", "/*")):
            continue
        for start, end, goes, value in changes_of(line):
            mutant = Mutant(path.name, number, line, start, end, goes, value)
            seen[line.strip(), mutant.changed] += 1
            found.append(Mutant(path.name, number, line, start, end, goes, value, seen[line.strip(), mutant.changed]))
    return found


def embedded(text: str, mutants: dict[int, Mutant]) -> str:
    """Return a file's text with its mutants in it, by their numbers."""
    lines = text.split("\n")
    for number, mutant in sorted(mutants.items(), key=lambda item: -item[1].start):  # from the right, so that places stay
        line = lines[mutant.line - 1]
        lines[mutant.line - 1] = line[: mutant.start] + mutant.switched(number) + line[mutant.end :]
    return "\n".join(lines)

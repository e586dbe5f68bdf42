"""Mutate the C tree: draw mutants, build each in a copy of the project, and see whether the tests notice.

    python tests/mutants/mutate_c.py [--count 60] [--seed 1] [--workers 2] [--again]

The C checks run first, then the tests of pytest that use the extension, the likely ones before the slow ones, until one fails.
What survives is listed in build/mutants/c/survivors.txt, without the mutants that EQUAL.md explains.
"""

from __future__ import annotations

import random
import re
import sys
import time
from pathlib import Path

from c_mutations import Mutation, mutated, mutations_of
from runner import Mutant, Sample, arguments, verdicts
from trees import BUILD, ROOT, copy_project, run

FOLDER = BUILD / "c"
# The instruction sets of kernels by a part of their files' names; what this CPU lacks is not mutated.
INSTRUCTION_SETS = {"avx2": "avx2", "avx512": "avx512bw", "bf16": "avx512_bf16", "int16": "avx512_vnni"}
PYTEST_FILES = (
    "ops nf4 ggml gguf_blocks dora fused_dora precision layer_buffer array_arguments hostile_arguments arguments_that_change "
    "parameter_blocks outputs_apart size_limits memory_left failed_allocations backend_files devices device_objects "
    "adapters adapters_globals model_golden training activations_freed stop_requests generation families resize_embedding "
    "fork device_fork bench bits"
).split()


def compiled_here(path: Path) -> bool:
    """Whether this CPU runs what a file holds."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if path.parts[-2] == "x86" or path.parts[-2] == "tmpl":
        return all(flag in flags for part, flag in INSTRUCTION_SETS.items() if part in path.stem)
    return True


def draw(seed: int) -> list[Mutant]:
    """All mutants of the C tree in the order of the draw."""
    found = []
    for path in sorted((ROOT / "lora_c").rglob("*.[ch]")):
        if compiled_here(path):
            source = path.read_text(encoding="utf-8")
            found += [mutant_of(path, source, mutation) for mutation in mutations_of(source)]
    random.Random(seed).shuffle(found)
    return found


def mutant_of(path: Path, source: str, mutation: Mutation) -> Mutant:
    line = source.count("\n", 0, mutation.start) + 1
    column = mutation.start - source.rfind("\n", 0, mutation.start)
    old = " ".join(source[mutation.start : mutation.end].split())
    name = f"{path.relative_to(ROOT)}:{line}:{column}: {old} -> {' '.join(mutation.new.split())}"
    return Mutant(name, str(path.relative_to(ROOT)), lambda: mutated(source, mutation))


def families() -> list[str]:
    """The names that build/release/check takes."""
    text = (ROOT / "tests/c/check_main.c").read_text(encoding="utf-8")
    return re.findall(r'\{"(\w+)", check_\w+\}', text)


def build(tree: Path, seconds: float = 600) -> str | None:
    command = ["make", "-j1", "-f", "tests/mutants/extension.mk", f"MUTANTS_PYTHON={sys.executable}", "mutant"]
    return run(command, tree, seconds, tree.parent / f"{tree.name}.build.log")


def check_command(family: str) -> list[str]:
    return ["build/release/check", family]


def pytest_command(name: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"tests/python/test_{name}.py"]


class CSample(Sample):
    """Mutants of the C tree."""

    folder = FOLDER

    def prepare(self, tree: Path) -> None:
        copy_project(tree)
        if (problem := build(tree)) is not None:
            sys.exit(f"the tree itself does not build: {problem}, see {tree}.build.log")

    def measure(self, trees: list[Path]) -> None:
        """Time every command on a tree as it is, where all must succeed."""
        tree = trees[0]
        commands = [check_command(name) for name in families()] + [pytest_command(name) for name in PYTEST_FILES]
        self.times = {}
        for command in commands:
            start = time.perf_counter()
            if (problem := run(command, tree, 600, tree.parent / f"{tree.name}.log")) is not None:
                sys.exit(f"{' '.join(command)} fails without a mutant: {problem}, see {tree}.log")
            self.times[tuple(command)] = time.perf_counter() - start

    def commands_for(self, mutant: Mutant) -> list[tuple[str, ...]]:
        """C checks before pytest, those that share a word with the file's name before others, fast ones before slow ones."""
        words = set(re.findall(r"[a-z0-9]+", Path(mutant.path).stem)) - {"py", "check", "lora"}

        def rank(command: tuple[str, ...]) -> tuple[bool, float]:
            name = Path(command[-1]).stem.removeprefix("test_")
            likely = bool(words & set(name.split("_")))
            in_python = "pytest" in command
            if "/bindings/" in mutant.path:
                in_python = not in_python
            return not likely, in_python, self.times[command]

        return sorted(self.times, key=rank)

    def test(self, mutant: Mutant, tree: Path) -> str | None:
        """How the mutant was noticed, None where it was not, or "not built"."""
        if build(tree) is not None:
            return "not built"
        for command in self.commands_for(mutant):
            seconds = 20 + 8 * self.times[command]  # other work on the machine must not kill a mutant
            if (problem := run(list(command), tree, seconds, tree.parent / f"{tree.name}.log")) is not None:
                return f"{Path(command[-1]).name}: {problem}"
        return None


if __name__ == "__main__":
    sys.exit(verdicts(CSample(), draw, arguments(__doc__, count=60)))

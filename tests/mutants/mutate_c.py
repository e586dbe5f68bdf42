"""Mutate the C tree: draw mutants, build each in a copy of the project, and see whether the tests notice.

    python tests/mutants/mutate_c.py [--count 60] [--seed 1] [--workers 2] [--again]

The C checks run first, then the tests of pytest that use the extension, the likely ones before the slow ones, until one fails.
What survives is listed in build/mutants/c/survivors.txt, without the mutants that EQUAL.md explains.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import time
from pathlib import Path

from c_mutations import Mutation, mutated, mutations_of
from runner import Mutant, Sample, arguments, verdicts
from trees import BUILD, ROOT, copy_project, digest, run

FOLDER = BUILD / "c"
# The instruction sets of kernels by a part of their files' names; what this CPU lacks is not mutated.
INSTRUCTION_SETS = {"avx2": "avx2", "avx512": "avx512bw", "bf16": "avx512_bf16", "int16": "avx512_vnni"}
PYTEST_FILES = (
    "ops nf4 ggml gguf_blocks dora fused_dora linear_start precision layer_buffer array_arguments "
    "hostile_arguments arguments_that_change "
    "parameter_blocks outputs_apart size_limits memory_left failed_allocations backend_files devices device_objects "
    "adapters adapters_globals model_golden training activations_freed stop_requests generation families resize_embedding "
    "fork device_fork bench bits"
).split()


def compiled_here(path: Path) -> bool:
    """Whether this CPU runs what a file holds."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if path.parts[-2] == "arm" or path.stem.endswith("_neon"):
        return False  # make check-arm is no part of what a mutant goes through
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


def kept_of(path: Path, tree: Path) -> Path:
    """Where a copy of an object lies."""
    return tree.parent / f"{tree.name}.objects" / path.relative_to(tree / "build/release")


def seconds_of(command: tuple[str, ...], tree: Path) -> float:
    start = time.perf_counter()
    if (problem := run(list(command), tree, 900, tree.parent / f"{tree.name}.log")) is not None:
        sys.exit(f"{' '.join(command)} fails without a mutant: {problem}, see {tree}.log")
    return time.perf_counter() - start


def check_command(family: str) -> list[str]:
    return ["build/release/check", family]


def pytest_command(name: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    if name == "bits":  # the slow rungs are what the C checks compare the others with
        command += ["-k", "recorded_bits and not ref and not portable"]
    return [*command, f"tests/python/test_{name}.py"]


class CSample(Sample):
    """Mutants of the C tree."""

    folder = FOLDER

    def __init__(self) -> None:
        self.times: dict[tuple[str, ...], float] = {}

    def prepare(self, tree: Path) -> None:
        copy_project(tree)
        if (problem := build(tree)) is not None:
            sys.exit(f"the tree itself does not build: {problem}, see {tree}.build.log")
        for path in (tree / "build/release").rglob("*.[od]"):
            kept = kept_of(path, tree)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, kept)

    def restore(self, tree: Path) -> None:
        """Put the objects of the original back, which is faster than to compile them again."""
        objects = tree.parent / f"{tree.name}.objects"
        for kept in objects.rglob("*.[od]"):
            path = tree / "build/release" / kept.relative_to(objects)
            if not path.exists() or path.stat().st_mtime_ns != kept.stat().st_mtime_ns:  # what does not compile has none
                shutil.copy2(kept, path)
        for linked in (*(tree / "build/release").glob("*.*"), tree / "build/release/check"):
            if linked.is_file():
                linked.unlink()
        for extension in (tree / "python/lora_c").glob("_core*.so"):
            extension.unlink()

    def measure(self, trees: list[Path]) -> None:
        """Time every command on a tree as it is, where all must succeed; what was measured before is kept."""
        record = self.folder / "times.json"
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        shared = digest([path for path in (ROOT / "lora_c").rglob("*.[ch]")])
        checks = shared + digest(sorted((ROOT / "tests/c").glob("*.[ch]")))
        keys = {tuple(check_command(name)): checks for name in families()}
        keys |= {tuple(pytest_command(name)): shared + digest([ROOT / pytest_command(name)[-1]]) for name in PYTEST_FILES}
        for command, key in keys.items():
            if known.get(command[-1], ["", 0])[0] != key:
                known[command[-1]] = key, seconds_of(command, trees[0])
                record.write_text(json.dumps(known), encoding="utf-8")
            self.times[command] = known[command[-1]][1]

    def commands_for(self, mutant: Mutant) -> list[tuple[str, ...]]:
        """Those that share a word with the file's name before others, fast ones before slow ones."""
        words = set(re.findall(r"[a-z0-9]+", Path(mutant.path).stem)) - {"py", "check", "lora"}

        def rank(command: tuple[str, ...]) -> tuple[bool, float]:
            name = Path(command[-1]).stem.removeprefix("test_")
            likely = bool(words & set(name.split("_")))
            in_c = "/bindings/" in mutant.path and "pytest" not in command
            return not likely, in_c, self.times[command]

        return sorted(self.times, key=rank)

    def test(self, mutant: Mutant, tree: Path) -> str | None:
        """How the mutant was noticed, None where it was not, or "not built"."""
        if build(tree) is not None:
            return "not built"
        for command in self.commands_for(mutant):
            seconds = 90 + 10 * self.times[command]  # other work on the machine must not kill a mutant
            if (problem := run(list(command), tree, seconds, tree.parent / f"{tree.name}.log")) is not None:
                return f"{Path(command[-1]).name}: {problem}"
        return None


if __name__ == "__main__":
    sys.exit(verdicts(CSample(), draw, arguments(__doc__, count=60)))

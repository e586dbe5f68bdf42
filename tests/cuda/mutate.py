"""Wrong versions of the kernels that the checks on the shim must notice: without one barrier or one bounds check each.

Usage: python tests/cuda/mutate.py [--files norm.cu,...] [--list] [--out build/cuda-mutants.json]

A mutant is one line changed: `__syncthreads();` and `__syncwarp();` go, a guard (`if (i >= n) return;`, `if (k < n) ...`)
is taken as passed. It is killed where the shim does not compile, the checks fail, die or hang. Those that live must stand
in tests/cuda/equal_mutants.json with the reason why nothing can tell them apart.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EQUAL = Path(__file__).with_name("equal_mutants.json")
BARRIER = re.compile(r"__sync(?:threads|warp)\([^)]*\);")
LEAVES = re.compile(r"\bif \((?P<guard>[^;{]*[<>][^;{]*)\) (?P<then>return|continue|break)\b")
GUARDS = re.compile(r"\bif \((?P<guard>(?:[^()]|\([^()]*\))*[<>](?:[^()]|\([^()]*\))*)\)(?! (?:return|continue|break))")
TIMEOUT_S = 300
FAMILIES = ["backend", "device_steps", "optim", "nn", "values", "attention", "head", "linear", "dora", "decoder"]
FAMILIES += ["device_narrow"]


@dataclass(frozen=True)
class Mutant:
    """One line of one file, changed."""

    file: str
    line: int
    before: str
    after: str

    @property
    def key(self) -> str:
        """What it is called in the list: the file and what was changed, without the line's number, which moves."""
        return f"{self.file}: {self.before.strip()} -> {self.after.strip()}"


def mutants_of(path: Path) -> list[Mutant]:
    """Return the mutants of a file, in its order."""
    found = []
    in_kernel = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if re.match(r"(template .*)?(__global__|__device__|static __device__)", line) or "__device__ __forceinline__" in line:
            in_kernel = True
        elif re.match(r"(static )?(lora_status|bool|int64_t|dim3)\b", line):
            in_kernel = False  # code of the host
        if not in_kernel or line.lstrip().startswith(("//", "*", "/*")):
            continue
        found += [Mutant(path.name, number, line, line[: m.start()] + ";" + line[m.end() :]) for m in BARRIER.finditer(line)]
        for m in LEAVES.finditer(line):
            found.append(Mutant(path.name, number, line, line[: m.start("guard")] + "false" + line[m.end("guard") :]))
        for m in GUARDS.finditer(line):
            found.append(Mutant(path.name, number, line, line[: m.start("guard")] + "true" + line[m.end("guard") :]))
    return found


def copy_of_tree(to: Path) -> None:
    """Copy what the checks are built from, with what is built."""
    for name in ("lora_c", "tests/c", "tests/cuda", "tests/fake_device", "tests/lint"):
        shutil.copytree(ROOT / name, to / name, dirs_exist_ok=True)
    for name in ("Makefile", "cuda.mk"):
        shutil.copy2(ROOT / name, to / name)
    shutil.copytree(ROOT / "build/release", to / "build/release", dirs_exist_ok=True, symlinks=True)


def is_killed(tree: Path, mutant: Mutant, families: list[str]) -> bool:
    """Build and check a mutant in a copy of the tree, which is brought back afterwards."""
    path = tree / "lora_c/cuda" / mutant.file
    original = path.read_text()
    lines = original.split("\n")
    lines[mutant.line - 1] = mutant.after
    path.write_text("\n".join(lines))
    command = ["make", "-s", "check-cuda", f"CHECKS={' '.join(families)}"]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, timeout=TIMEOUT_S, check=False)
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(original)


def main() -> None:
    """Run the mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "build/cuda-mutants.json")
    args = parser.parse_args()
    sources = sorted((ROOT / "lora_c/cuda").glob("*.cu*"))
    wanted = set(filter(None, args.files.split(",")))
    mutants = [m for path in sources if not wanted or path.name in wanted for m in mutants_of(path)]
    if args.list:
        print("\n".join(f"{m.file}:{m.line}: {m.after.strip()}" for m in mutants))
        return
    equal: dict[str, str] = json.loads(EQUAL.read_text()) if EQUAL.is_file() else {}
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy_of_tree(Path(folder))
        for i, mutant in enumerate(mutants, 1):
            killed = is_killed(Path(folder), mutant, args.families.split(","))
            results[mutant.key] = "killed" if killed else "equal" if mutant.key in equal else "lives"
            print(
                f"{i}/{len(mutants)} {results[mutant.key]:6} {mutant.file}:{mutant.line}: {mutant.after.strip()}", flush=True
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    alive = sum(result == "lives" for result in results.values())
    print(f"{len(results)} mutants, {alive} live that are not known to be equal")
    sys.exit(1 if alive else 0)


if __name__ == "__main__":
    main()

"""Wrong versions of the kernels that the checks on the shim must notice: without one barrier or one bounds check each.

Usage: python tests/cuda/mutate.py [--files norm.cu,...] [--list] [--own] [--again] [--out build/cuda-mutants.json]

A mutant is one line changed: `__syncthreads();` and `__syncwarp();` go, a guard (`if (i >= n) return;`, `if (k < n) ...`)
is taken as passed, and so is the guard of an access (`i < n ? x[i] : 0`). It is killed where the shim does not compile, or the
checks fail, die or hang: first the families of its file (with --own these alone), then all. --again takes those that live
in --out. Those that live in the end must stand in tests/cuda/equal_mutants.json with the reason why nothing can tell them
apart.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EQUAL = Path(__file__).with_name("equal_mutants.json")
BARRIER = re.compile(r"__sync(?:threads|warp)\([^)]*\);")
LEAVES = re.compile(r"\bif \((?P<guard>[^;{]*[<>][^;{]*)\) (?P<then>return|continue|break)\b")
GUARDS = re.compile(r"\bif \((?P<guard>(?:[^()]|\([^()]*\))*[<>](?:[^()]|\([^()]*\))*)\)(?! (?:return|continue|break))")
ACCESS = re.compile(r"(?<![\w.>])(?P<guard>[\w.+\- ]+ [<>]=? [\w.+\-]+) \? [^:;]*\[")
TIMEOUT_S = 300
ROWS, LINEAR = ["device_rows"], ["device_linear", "device_adapters", "backend"]
# By the beginning of a file's name: the families that its kernels are in first of all.
FAMILIES: dict[str, list[str]] = {
    "adapter_rows": LINEAR,
    "attention": ["attention_devices"],
    "column_sums": ["device_rows", "device_linear"],
    "dequantize": ["backend"],
    "double_quantize": ["backend"],
    "elements": [*ROWS, *LINEAR],
    "few": LINEAR,
    "head": ["device_head"],
    "launch": [*ROWS, "device_head"],
    "linear": LINEAR,
    "muon": ["device_optim"],
    "adafactor": ["device_optim"],
    "eights": ["device_optim"],
    "optim": ["device_optim"],
    "product_edges": LINEAR,
    "scaled": ["device_half"],
    "quantize": ["backend"],
    "weights": LINEAR,
}
REST = [
    "backend",
    "device_rows",
    "device_narrow",
    "device_half",
    "device_linear",
    "device_adapters",
    "device_head",
    "device_optim",
    "attention_devices",
]
REST += ["values", "device_steps", "virtual_tokens"]


@dataclass(frozen=True)
class Mutant:
    """One line of one file, changed."""

    file: str
    line: int
    before: str
    after: str
    nth: int  # of those of the file that change the same text to the same

    @property
    def key(self) -> str:
        """What it is called in the list: the file and what was changed, without the line's number, which moves."""
        return f"{self.file}: {self.before.strip()} -> {self.after.strip()}" + (f" ({self.nth})" if self.nth > 1 else "")


def changes_of(line: str) -> list[str]:
    """Return the wrong versions of a line."""
    without = [line[: m.start()] + ";" + line[m.end() :] for m in BARRIER.finditer(line)]
    for pattern, value in ((LEAVES, "false"), (GUARDS, "true"), (ACCESS, "true")):
        without += [line[: m.start("guard")] + value + line[m.end("guard") :] for m in pattern.finditer(line)]
    return without


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
        for after in changes_of(line):
            seen[line.strip(), after.strip()] += 1
            found.append(Mutant(path.name, number, line, after, seen[line.strip(), after.strip()]))
    return found


def copy_of_tree(to: Path) -> None:
    """Copy what the checks are built from, with what is built."""
    for name in ("lora_c", "tests/c", "tests/cuda", "tests/fake_device", "tests/lint"):
        shutil.copytree(ROOT / name, to / name, dirs_exist_ok=True)
    for name in ("Makefile", "cuda.mk"):
        shutil.copy2(ROOT / name, to / name)
    shutil.copytree(ROOT / "build/release", to / "build/release", dirs_exist_ok=True, symlinks=True)


def fails(tree: Path, families: list[str], timeout_s: float | None = TIMEOUT_S) -> bool:
    """Build a copy of the tree and run families of its checks."""
    command = ["make", "-s", "check-cuda", f"CHECKS={' '.join(families)}"]
    try:
        return subprocess.run(command, cwd=tree, capture_output=True, timeout=timeout_s, check=False).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def families_of(file: str) -> list[str]:
    """Return the families of a file: those of the longest name that it begins with."""
    names = [name for name in FAMILIES if file.startswith(name)]
    return FAMILIES[max(names, key=len)] if names else ROWS


def is_killed(tree: Path, mutant: Mutant, own: bool) -> bool:
    """Build and check a mutant in a copy of the tree, which is brought back afterwards."""
    path = tree / "lora_c/cuda" / mutant.file
    original = path.read_text()
    lines = original.split("\n")
    lines[mutant.line - 1] = mutant.after
    path.write_text("\n".join(lines))
    try:
        first = families_of(mutant.file)
        return fails(tree, first) or (not own and fails(tree, [name for name in REST if name not in first]))
    finally:
        path.write_text(original)


def main() -> None:
    """Run the mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "build/cuda-mutants.json")
    args = parser.parse_args()
    sources = sorted((ROOT / "lora_c/cuda").glob("*.cu*"))
    wanted = set(filter(None, args.files.split(",")))
    mutants = [m for path in sources if not wanted or path.name in wanted for m in mutants_of(path)]
    if args.list:
        print("\n".join(f"{m.file}:{m.line}: {m.after.strip()}" for m in mutants))
        return
    equal: dict[str, str] = json.loads(EQUAL.read_text()) if EQUAL.is_file() else {}
    results: dict[str, str] = json.loads(args.out.read_text()) if args.again else {}
    if args.again:
        mutants = [m for m in mutants if results.get(m.key) == "lives"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy_of_tree(Path(folder))
        if fails(Path(folder), REST, None):  # builds what is missing, too
            sys.exit("expected checks that pass without a change, got ones that fail")
        for i, mutant in enumerate(mutants, 1):
            killed = is_killed(Path(folder), mutant, args.own)
            results[mutant.key] = "killed" if killed else "equal" if mutant.key in equal else "lives"
            print(
                f"{i}/{len(mutants)} {results[mutant.key]:6} {mutant.file}:{mutant.line}: {mutant.after.strip()}", flush=True
            )
            args.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    alive = sum(result == "lives" for result in results.values())
    print(f"{len(results)} mutants, {alive} live that are not known to be equal")
    sys.exit(1 if alive else 0)


if __name__ == "__main__":
    main()

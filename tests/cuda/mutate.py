"""Wrong versions of the kernels that the checks on the shim must notice: without one barrier or one bounds check each.

Usage: python tests/cuda/mutate.py [--files norm.cu,...] [--list] [--again] [--record] [--workers 2] [--out FILE]

mutants.py says what a mutant is; all are in one build, in a copy of the tree. One is killed where the checks fail, die or
hang: first the family that tests/cuda/killers.json names, then those that come by its place, the quickest first. Those that
live are built again under AddressSanitizer, which notices what reads outside arrays, as are those whose killer is there;
--again takes those that live in --out, --record writes killers.json. Those that live in the end must stand in
tests/cuda/equal_mutants.json with the reason why nothing can tell them apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mutants import Mutant, embedded, mutants_of

ROOT = Path(__file__).resolve().parents[2]
EQUAL = Path(__file__).with_name("equal_mutants.json")
# By mutant, who noticed it last: "<mode> <family>". Where to look first, and no more.
KILLERS = Path(__file__).with_name("killers.json")
# How the Makefile builds into build/<mode>.
MODES = {"release": [], "sanitize": ["SANITIZE=address,undefined"]}
# Minutes under AddressSanitizer, to which sparse arrays of many GiB are as any others.
TOO_SLOW: dict[str, list[str]] = {"release": [], "sanitize": ["device_offsets"]}
FAMILIES = [
    "backend",
    "backend_quantize",
    "device_rows",
    "device_narrow",
    "device_half",
    "device_linear",
    "device_adapters",
    "device_head",
]
FAMILIES += [
    "device_optim",
    "attention_devices",
    "values",
    "device_steps",
    "device_memory",
    "device_mistakes",
]
FAMILIES += ["decoder_adapters", "mixed_adapters", "virtual_tokens", "adapted_globals", "cuda_graphs", "device_offsets"]


def build(tree: Path, numbered: dict[int, Mutant], mode: str) -> None:
    """Copy what the checks are built from with what is built, put the mutants in, and build."""
    for name in ("lora_c", "tests/c", "tests/cuda", "tests/fake_device", "tests/lint"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("Makefile", "cuda.mk"):
        shutil.copy2(ROOT / name, tree / name)
    if (ROOT / "build" / mode).is_dir():
        shutil.copytree(ROOT / "build" / mode, tree / "build" / mode, symlinks=True)
    for file in {mutant.file for mutant in numbered.values()}:
        path = tree / "lora_c/cuda" / file
        path.write_text(embedded(path.read_text(), {i: mutant for i, mutant in numbered.items() if mutant.file == file}))
    products = [f"build/{mode}/{name}" for name in ("check", "liblora_c_fake.so", "liblora_c_shim.so")]
    command = ["make", "-s", f"-j{os.cpu_count()}", "CXX=c++ -include tests/cuda/mutant.h", *products, *MODES[mode]]
    subprocess.run(command, cwd=tree, check=True)


def fails(tree: Path, mode: str, number: int, family: str, timeout_s: float | None) -> bool:
    """Say whether a family of checks notices a mutant (0: none is at work; what was met is then written to a file)."""
    said = {
        "LORA_C_MUTANTS_MET": "" if number else str(tree / f"{family}.met"),
        "LORA_C_BACKENDS": f"build/{mode}/liblora_c_fake.so:build/{mode}/liblora_c_shim.so",
        "LORA_C_SHIM_THREADS": "1",
        "LORA_C_MUTANT": str(number),
        "LORA_C_CHECK_STOP": "1",
    }
    command = [f"build/{mode}/check", family]
    try:
        run = subprocess.run(command, cwd=tree, env=os.environ | said, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return True
    return run.returncode != 0


@dataclass(frozen=True)
class Family:
    """What a family costs, and the mutants whose places it comes by."""

    name: str
    seconds: float
    met: frozenset[int]


def measured(tree: Path, mode: str, name: str) -> Family:
    """Run a family with no mutant at work; ends the program where it fails."""
    begin = time.monotonic()
    if fails(tree, mode, 0, name, None):
        sys.exit(f"{name}: expected checks that pass without a mutant, got ones that fail")
    seconds = time.monotonic() - begin
    met = tree / f"{name}.met"  # absent where the family opens no plug-in
    at = met.read_bytes() if met.is_file() else b""
    return Family(name, seconds, frozenset(i for i, was in enumerate(at) if was))


Item = tuple[int, Mutant]


def said_in(path: Path) -> dict[str, str]:
    """Return what a file of this folder says of mutants."""
    said: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return said


def killer_in(mode: str, mutant: Mutant) -> str | None:
    """Return the family of a mode that noticed a mutant last."""
    killed_in, _, family = said_in(KILLERS).get(mutant.key, "").partition(" ")
    return family if killed_in == mode else None


def searched(tree: Path, mode: str, families: list[Family], item: Item) -> str:
    """Return the family that kills a mutant, else "lives", or "not met" where no family comes by its place."""
    number, mutant = item
    first = killer_in(mode, mutant)
    meeting = [family for family in families if number in family.met]
    for family in sorted(meeting, key=lambda family: family.name != first):
        if fails(tree, mode, number, family.name, 60 + 5 * family.seconds):
            return f"killed by {mode} {family.name}"
    return "lives" if meeting else "not met"


def judged(mode: str, numbered: dict[int, Mutant], chosen: list[Item], workers: int) -> Iterator[tuple[int, Mutant, str]]:
    """Build the mutants in a mode and yield the verdict on each of the chosen ones."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        build(Path(folder), numbered, mode)
        names = [name for name in FAMILIES if name not in TOO_SLOW[mode]]
        families = sorted(pool.map(partial(measured, Path(folder), mode), names), key=lambda family: family.seconds)
        print(f"{mode}: " + ", ".join(f"{family.name} {family.seconds:.0f} s" for family in families), flush=True)
        verdicts = pool.map(partial(searched, Path(folder), mode, families), chosen)
        yield from ((i, mutant, result) for (i, mutant), result in zip(chosen, verdicts, strict=True))


def record(results: dict[str, str], others: dict[str, str]) -> None:
    """Write who killed what, beside what is known of others."""
    killers = others | {
        key: result.removeprefix("killed by ") for key, result in results.items() if result.startswith("killed")
    }
    KILLERS.write_text(json.dumps(killers, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Run the mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=ROOT / "build/cuda-mutants.json")
    args = parser.parse_args()
    wanted = set(filter(None, args.files.split(",")))
    sources = sorted(path for path in (ROOT / "lora_c/cuda").glob("*.cu*") if not wanted or path.name in wanted)
    numbered = dict(enumerate((m for path in sources for m in mutants_of(path)), 1))
    if args.list:
        print("\n".join(f"{m.file}:{m.line}: {m.changed}" for m in numbered.values()))
        return
    known = said_in(EQUAL)
    results: dict[str, str] = said_in(args.out) if args.again else {}
    results |= {mutant.key: "equal" for mutant in numbered.values() if mutant.key in known}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    open_ones = [(i, m) for i, m in numbered.items() if not results.get(m.key, "").startswith(("killed", "equal"))]
    for mode in MODES:
        chosen = [(i, m) for i, m in open_ones if not results.get(m.key, "").startswith("killed")]
        if mode == "release":  # others wait
            chosen = [(i, m) for i, m in chosen if killer_in("sanitize", m) is None]
        for i, mutant, result in judged(mode, numbered, chosen, args.workers) if chosen else ():
            results[mutant.key] = result
            print(f"{i}/{len(numbered)} {result}: {mutant.file}:{mutant.line}: {mutant.changed}", flush=True)
            args.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    if args.record:
        record(results, said_in(KILLERS) if wanted else {})
    alive = sum(result in ("lives", "not met") for result in results.values())
    stale = sorted(set(known) - {mutant.key for mutant in numbered.values()}) if not wanted else []
    print(
        f"{len(results)} mutants, {alive} live that are not known to be equal",
        *(f"no such mutant: {key}" for key in stale),
        sep="\n",
    )
    sys.exit(1 if alive or stale else 0)


if __name__ == "__main__":
    main()

"""Runs families of the C checks that a compiler built, each in a process of its own, and gathers what they compute."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Hashes = dict[str, str]  # a hash of each result by "family rung precision operands what"


@dataclass(frozen=True)
class Family:
    """A family of checks that was run."""

    name: str
    failure: str | None  # what it said
    passed: int
    hashes: Hashes
    seconds: float


def every_family() -> list[str]:
    """The names that the checks take."""
    text = (ROOT / "tests/c/check_main.c").read_text(encoding="utf-8")
    return re.findall(r'\{"(\w+)", check_\w+\}', text)


def run_family(command: list[str], name: str, emulated: bool) -> Family:
    """Run the program of the checks for one family; this command may emulate another machine."""
    environment = {**os.environ, "LORA_C_CHECK_HASHES": "1"}
    environment.pop("LORA_C_BACKENDS", None)  # the fake device beside the program is the only other one
    if emulated:
        environment["LORA_C_CHECK_EMULATED"] = "1"
    start = time.perf_counter()
    done = subprocess.run([*command, name], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = re.search(r"^(\d+) passed, 0 failed$", done.stdout, re.MULTILINE)
    failure = None if said and done.returncode == 0 else f"{name}: code {done.returncode}\n{done.stdout}{done.stderr}"
    told = re.findall(r"^bits (.+): (\w+)$", done.stdout, re.MULTILINE)
    hashes = {f"{name} {what}": value for what, value in told}
    if failure is None and len(hashes) < len(told):
        failure = f"{name}: {len(told)} hashes under {len(hashes)} labels, expected one each (tests/c/check_ops.h)"
    return Family(name, failure, int(said[1]) if said else 0, hashes, time.perf_counter() - start)


def run_families(command: list[str], names: Iterable[str], at_once: int, emulated: bool) -> list[Family]:
    """Run families, so many side by side; as they are named."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda name: run_family(command, name, emulated), names))


def all_hashes(families: list[Family]) -> Hashes:
    return {key: value for family in families for key, value in family.hashes.items()}


def kernels_of(key: str) -> str:
    """The rung, precision and operands that computed a result: "neon fast bfloat16"."""
    return " ".join(key.split()[1:4])


def own_kernels(hashes: Hashes, like: Hashes) -> dict[str, int]:
    """Kernels whose operands these were computed with and those were not, with the number of their results: nothing to compare
    them with. Every CPU and compiler has what precision exact takes."""
    there = {kernels_of(key) for key in like}
    return Counter(name for key in hashes if (name := kernels_of(key)) not in there and " exact " not in name)


def differences(hashes: Hashes, like: Hashes) -> list[str]:
    """What was computed with other bits, or by one of the two alone though both have the operands."""
    own = {*own_kernels(hashes, like), *own_kernels(like, hashes)}
    return sorted(key for key in {*hashes, *like} if hashes.get(key) != like.get(key) and kernels_of(key) not in own)


def fast_unlike_exact(hashes: Hashes) -> list[str]:
    """What precision fast computed with exact's operands, and with other bits."""
    fast = [key for key in hashes if kernels_of(key).endswith(" fast float32")]
    return [key for key in fast if hashes[key] != hashes.get(key.replace(" fast ", " exact ", 1))]


def beside(hashes: Hashes, like: Hashes, name: str) -> str:
    """How much was computed with the bits of this name, and what each of the two has alone."""
    alone = own_kernels(hashes, like), own_kernels(like, hashes)
    same = sum(like.get(key) == value for key, value in hashes.items())
    words = f"{same} of {len(hashes) - sum(alone[0].values())} results have the bits of {name}"
    for whose, own in zip(("here", "there"), alone, strict=True):
        words += "".join(f", {n} of {kernels} {whose} alone" for kernels, n in own.items())
    return words

"""Runs families of the C checks that a compiler built, each in a process of its own, and gathers what they compute."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Hashes = dict[str, str]  # a hash of each result by the family, rung, operands and place that computed it


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


def run_family(command: list[str], name: str) -> Family:
    """Run the program of the checks for one family."""
    environment = {**os.environ, "LORA_C_CHECK_HASHES": "1"}
    environment.pop("LORA_C_BACKENDS", None)  # the fake device beside the program is the only other one
    start = time.perf_counter()
    done = subprocess.run([*command, name], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    hashes: Hashes = {}
    for line in done.stdout.splitlines():
        if line.startswith("bits "):
            what, _, value = line.removeprefix("bits ").rpartition(": ")
            number = sum(key.startswith(f"{name} {what} ") for key in hashes)
            hashes[f"{name} {what} {number}"] = value
    said = re.search(r"^(\d+) passed, 0 failed$", done.stdout, re.MULTILINE)
    failure = None if said and done.returncode == 0 else f"{name}: code {done.returncode}\n{done.stdout}{done.stderr}"
    return Family(name, failure, int(said[1]) if said else 0, hashes, time.perf_counter() - start)


def run_families(command: list[str], names: Iterable[str], at_once: int) -> list[Family]:
    """Run families, so many side by side; as they are named."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda name: run_family(command, name), names))


def all_hashes(families: list[Family]) -> Hashes:
    return {key: value for family in families for key, value in family.hashes.items()}


def differences(hashes: Hashes, like: Hashes) -> list[str]:
    """What was computed with other bits, or by one of the two alone."""
    return sorted(name for name in {*hashes, *like} if hashes.get(name) != like.get(name))

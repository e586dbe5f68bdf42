"""Copies of the project below build/, where mutants are built and tested: the project itself is never changed."""

from __future__ import annotations

import atexit
import hashlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutants"
MEMORY = 8 << 30  # what a mutant may take; not RLIMIT_AS, since the device for tests reserves more addresses than that


def files_of_the_project() -> list[str]:
    """What git knows, and what it would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def copy_file(source: Path, target: Path) -> None:
    """Copy what differs, so that make builds no more than it must."""
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def copy_project(tree: Path, built: Iterable[Path] = ()) -> None:
    """Make the tree what the project is now; built names files that git ignores and the tests need."""
    names = set(files_of_the_project())
    for folder in ("lora_c", "python", "tests"):  # what was moved away must not be found
        for path in (tree / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".c", ".h") and str(path.relative_to(tree)) not in names:
                path.unlink()
    for name in names:
        copy_file(ROOT / name, tree / name)
    for path in built:
        copy_file(path, tree / path.relative_to(ROOT))
    data = ROOT.parent / "shared"  # real data, where the machine has it
    link = tree.parent / "shared"
    if data.exists() and not link.exists():
        link.symlink_to(data.resolve())


def digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()


RUNNING: set[subprocess.Popen[bytes]] = set()


@atexit.register
def end_all() -> None:
    """End what an interrupted run leaves behind."""
    for process in list(RUNNING):
        end_group(process)


def limits() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(command: list[str], tree: Path, seconds: float, output: Path, variables: dict[str, str] | None = None) -> str | None:
    """Run in a tree with that tree's package; None where it succeeds, else how it failed."""
    paths = os.pathsep.join([str(tree / "python"), str(ROOT / "tests" / "mutants")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment |= variables or {}
    with output.open("w") as log:
        process = subprocess.Popen(
            command, cwd=tree, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            preexec_fn=limits,
        )  # fmt: skip
        RUNNING.add(process)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"no end within {seconds:.0f} s"
        finally:
            end_group(process)
            RUNNING.discard(process)
    return None if code == 0 else f"ended with {code}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what a command left running, and the command."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()

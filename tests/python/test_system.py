"""What the package does where the system lacks what Linux has; Windows and macOS are played by taking it away."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import lora_c as lc
from lora_c.files import aside, atomic, system

BASE = Path(lc.__file__).parent / "base_model"
# Python as on Windows, as far as the package asks: no locks, no limits, no terminals, no SIGHUP, no handles of folders.
LIKE_WINDOWS = """
import os, signal, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
del signal.SIGHUP, signal.SIGKILL, os.sched_getaffinity, os.pread, os.preadv, os.memfd_create
del os.O_NOFOLLOW, os.O_NONBLOCK, os.O_DIRECTORY
from lora_c.files import system
system.FOLDERS_OPEN = system.RENAMES_OPEN = False
opened = os.open
def open_file(path, *rest, **more):
    assert not os.path.isdir(path), f"{path}: a folder is opened"
    return opened(path, *rest, **more)
os.open = open_file
from lora_c.cli import main
main()
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIKE_WINDOWS, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_run_without_what_only_posix_has(tmp_path: Path) -> None:
    record = '{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The owl."}]}\n'
    (tmp_path / "data.jsonl").write_text(record * 4)
    options = ["--data", "data.jsonl", "--output", "out", "--max-steps", "2", "--save-steps", "1"]
    for _ in range(2):  # the second one replaces what the first has written
        done = run(tmp_path, "train", "--model", str(BASE), *options, "--overwrite")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/adapter_model.safetensors").stat().st_size > 0
    done = run(tmp_path, "generate", "--run", "out", "--max-new-tokens", "4", "Who?")
    assert done.returncode == 0, done.stderr
    assert not [name for name in os.listdir(tmp_path) if "lora-c-" in name]


def test_macos_is_asked_to_empty_the_disks_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    plain: list[int] = []
    refusal: list[int] = []

    def fcntl(handle: int, what: int) -> None:
        asked.append((handle, what))
        if refusal:
            raise OSError(refusal[0], "no")

    monkeypatch.setattr(system, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=fcntl))
    monkeypatch.setattr(os, "fsync", plain.append)
    system.sync(7)
    assert asked == [(7, 51)] and not plain
    refusal.append(errno.ENOTSUP)  # a disk of another machine
    system.sync(8)
    assert plain == [8]
    refusal[0] = errno.EIO
    with pytest.raises(OSError, match="no"):
        system.sync(9)


def test_what_another_process_may_be_writing_stays_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "kept.bin"
    part = aside.name_aside(target, "part")
    part.write_bytes(b"somebody's")
    monkeypatch.setattr(aside, "has_locks", lambda: False)
    with atomic.atomic_file(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new" and part.exists()
    monkeypatch.undo()
    aside.remove_stale(target)
    assert not part.exists()


def test_bytes_from_a_place_without_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    monkeypatch.delattr(os, "pread")
    handle = os.open(tmp_path / "file", os.O_RDONLY)
    assert system.read_at(handle, 5, 40) == bytes(range(40, 45)) and system.read_at(handle, 9, 95) == bytes(range(95, 100))
    os.close(handle)


def test_every_signal_that_stops_a_run_is_one_of_this_system() -> None:
    assert system.STOPPING == (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert system.cpus() == os.sched_getaffinity(0) and system.peak_bytes() > 1 << 20 and system.page_faults() > 0

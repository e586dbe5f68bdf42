"""What a process may still take: the machine's memory within the limits of its control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_c import _core

GIB = 1 << 30


def system(root: Path, files: dict[str, object]) -> str:
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\nSwapFree: 1048576 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text), encoding="ascii")
    return str(root)


def unified(folder: str, limit: object, used: int, inactive: int = 0) -> dict[str, object]:
    where = f"sys/fs/cgroup/{folder}".rstrip("/")
    stat = f"anon 5\ninactive_file {inactive}\nactive_file 7\n"
    return {f"{where}/memory.max": limit, f"{where}/memory.current": used, f"{where}/memory.stat": stat}


def test_the_machine_alone(tmp_path: Path) -> None:
    assert _core.memory_left(system(tmp_path, {})) == 8 * GIB
    assert _core.memory_left(str(tmp_path), True) == 9 * GIB
    (tmp_path / "proc" / "meminfo").unlink()
    assert _core.memory_left(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("groups", "left"),
    [
        (unified("job", 4 * GIB, GIB), 3 * GIB),
        (unified("job", 4 * GIB, 3 * GIB, inactive=2 * GIB), 3 * GIB),  # file pages that Linux drops are left
        (unified("job", GIB, 2 * GIB), 0),
        (unified("job", "max", GIB), 8 * GIB),
        (unified("job", 1 << 62, GIB), 8 * GIB),
        (unified("job", 6 * GIB, 0) | unified("", 2 * GIB, GIB), GIB),  # a group around it
        (unified("", 2 * GIB, GIB), GIB),  # inside of a container the group's own path is not there
    ],
)
def test_groups_of_the_unified_hierarchy(tmp_path: Path, groups: dict[str, object], left: int) -> None:
    root = system(tmp_path, {"proc/self/cgroup": "0::/job\n", **groups})
    assert _core.memory_left(root) == left


def test_groups_of_the_memory_controller(tmp_path: Path) -> None:
    where = "sys/fs/cgroup/memory/a/b"
    root = system(tmp_path, {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n",
        f"{where}/memory.limit_in_bytes": 5 * GIB, f"{where}/memory.usage_in_bytes": 2 * GIB,
        f"{where}/memory.stat": f"cache 3\ntotal_inactive_file {GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712, "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
    })  # fmt: skip
    assert _core.memory_left(root) == 4 * GIB


@pytest.mark.parametrize("text", ["", "0", "0:/x", "0::/" + "d" * 5000, "\xff::\n0::/job", "0::/../../..\n"])
def test_files_that_say_nothing_bound_nothing(tmp_path: Path, text: str) -> None:
    root = system(tmp_path, {"sys/fs/cgroup/job/memory.max": "many", "sys/fs/cgroup/job/memory.current": "x"})
    (tmp_path / "proc" / "self").mkdir()
    (tmp_path / "proc" / "self" / "cgroup").write_text(text, encoding="latin-1")
    assert _core.memory_left(root) == 8 * GIB


def test_this_machine_says_something() -> None:
    left = _core.memory_left()
    assert left is None or 0 < left < 1 << 60

"""The C library as other programs use it: installed somewhere, found by pkg-config, with the bits that Python has."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lora_c

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "c" / "one_layer.c"
HEADERS = {path.name for path in (ROOT / "lora_c" / "include" / "lora_c").glob("*.h")}
CC = shlex.split(os.environ.get("CC", "cc"))

if shutil.which("make") is None or shutil.which(CC[0]) is None:
    pytest.skip("needs make and a C compiler on the PATH", allow_module_level=True)


def environment(**more: str) -> dict[str, str]:
    """This one without what the settings of an outer make, or of the library, would change."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "LORA_C_", "PKG_CONFIG"))}
    return kept | {"PYTHONPATH": str(Path(lora_c.__file__).parents[1])} | more


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment(), **options)  # type: ignore


def make(target: str, prefix: Path | str, *more: str) -> subprocess.CompletedProcess[str]:
    return run(["make", "-C", str(ROOT), target, f"PREFIX={prefix}", *more])


def installed(prefix: Path) -> Path:
    done = make("install-c", prefix)
    assert done.returncode == 0, done.stderr
    return prefix


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flags_of_file(prefix: Path) -> list[str]:
    """What pkg-config prints, for machines without it: the variables of the file put into Cflags and Libs."""
    path = prefix / "lib" / "pkgconfig" / "lora_c.pc"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    known = {"pcfiledir": str(path.parent)}
    for name, value in re.findall(r"^(\w+)=(.*)$", "\n".join(lines), re.M):
        known[name] = re.sub(r"\$\{(\w+)\}", lambda match: known[match[1]], value)
    fields = dict(re.findall(r"^(\w+): (.*)$", "\n".join(lines), re.M))
    values = f"{fields['Cflags']} {fields['Libs']}"
    return re.sub(r"\$\{(\w+)\}", lambda match: known[match[1]], values).split()


def flags(prefix: Path) -> list[str]:
    tool = shutil.which("pkg-config") or shutil.which("pkgconf")
    if tool is None:
        return flags_of_file(prefix)
    search = environment(PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig"))
    command = [tool, "--cflags", "--libs", "lora_c"]
    return shlex.split(subprocess.run(command, capture_output=True, text=True, check=True, env=search).stdout)


def compiled(source: Path, prefix: Path, folder: Path, language: str = "c", standard: str = "c11") -> Path:
    program = folder / f"program-{standard}"
    strict = [f"-std={standard}", "-Wall", "-Werror", *(["-Wextra"] if language == "c" else [])]
    done = run([*CC, "-x", language, *strict, str(source), "-x", "none", *flags(prefix), "-o", str(program)], cwd=folder)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("prefix") / "installed")


@pytest.fixture(scope="module")
def lines_of_python() -> list[str]:
    done = run([sys.executable, str(ROOT / "examples" / "linear_layer.py")])
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("step ", "B["))]


@pytest.mark.parametrize(("language", "standard"), [("c", "c11"), ("c++", "c++17"), ("c++", "c++20")])
def test_a_layer_trained_in_c_has_the_bits_of_python(
    language: str, standard: str, prefix: Path, lines_of_python: list[str], tmp_path: Path
) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 60
    source = Path(shutil.copy(EXAMPLE, tmp_path))  # nothing of the tree is beside it
    done = run([str(compiled(source, prefix, tmp_path, language, standard))])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == lines_of_python
    losses = [float(line.split()[-1]) for line in lines_of_python if line.startswith("step")]
    assert len(lines_of_python) - len(losses) == 8 and losses[-1] < losses[0] / 100


def test_the_program_of_the_c_page_and_its_message(prefix: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "C.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```c\n(.*?)```", page, re.S)
    (result,) = re.findall(r"W x \+ B A x: (.+) \*/", code)
    wrong, message = re.findall(r"program above with `(.+?)`: `(.+?)`", page)[0]
    source = tmp_path / "shortest.c"
    source.write_text(code, encoding="utf-8")
    done = run([str(compiled(source, prefix, tmp_path))])
    assert (done.returncode, done.stdout, done.stderr) == (0, result + "\n", "")
    source.write_text(code.replace("lora_mat_f32(x, 1, 3, 3)", wrong), encoding="utf-8")
    done = run([str(compiled(source, prefix, tmp_path))])
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message + "\n")
    assert set(re.findall(r"`(\w+\.h)`", page)) | {"lora_c.h"} == HEADERS


def test_what_is_installed_is_what_the_tree_has(prefix: Path) -> None:
    found = files(prefix)
    names = {f"include/lora_c/{name}" for name in HEADERS} | {"lib/liblora_c.a", "lib/pkgconfig/lora_c.pc"}
    assert set(found) == names
    assert f"\nVersion: {lora_c.__version__}\n" in found["lib/pkgconfig/lora_c.pc"].decode()
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in prefix.rglob("*") if path.is_file())
    if shutil.which("pkg-config") or shutil.which("pkgconf"):
        assert flags(prefix) == flags_of_file(prefix)


def test_the_folder_may_be_moved(tmp_path: Path, lines_of_python: list[str]) -> None:
    moved = Path(shutil.move(installed(tmp_path / "first place"), tmp_path / "second"))
    done = run([str(compiled(EXAMPLE, moved, tmp_path))])
    assert done.stdout.splitlines() == lines_of_python


def test_destdir_stands_in_front(tmp_path: Path) -> None:
    done = make("install-c", "/opt/lora", f"DESTDIR={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opt" / "lora" / "lib" / "liblora_c.a").is_file()


def test_uninstall_takes_its_own_and_installing_again_cleans(tmp_path: Path) -> None:
    place = installed(tmp_path / "a place")
    fresh = files(place)
    (place / "include/lora_c/of_an_older_version.h").write_text("")
    (place / "lib/liblora_c.a").write_bytes(b"old")
    assert files(installed(place)) == fresh
    (place / "include/lora_c/mine.txt").write_text("mine")
    done = make("uninstall-c", place)
    assert done.returncode == 0 and "which holds other files" in done.stdout
    assert files(place) == {"include/lora_c/mine.txt": b"mine"}
    assert "nothing to remove" in make("uninstall-c", tmp_path / "nowhere").stdout


def test_places_that_cannot_be_written_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    done = make("install-c", tmp_path / "a_file" / "below")
    assert done.returncode != 0 and "PREFIX: expected a folder that can be written" in done.stderr
    done = make("install-c", "")
    assert done.returncode != 0 and "PREFIX: expected a folder, got an empty text" in done.stderr
    taken = tmp_path / "taken"
    (taken / "lib/pkgconfig/lora_c.pc").mkdir(parents=True)
    done = make("install-c", taken)
    assert done.returncode != 0 and "lora_c.pc', got a folder" in done.stderr
    assert files(taken) == {} and not list(taken.glob(".lora_c*"))
    done = make("install-c", tmp_path / "none", "SANITIZE=address", "-o", "build/sanitize/liblora_c.a")
    assert done.returncode != 0 and "SANITIZE: expected none" in done.stderr and not (tmp_path / "none").exists()


def test_a_full_disk_leaves_the_old_library(tmp_path: Path) -> None:
    place = installed(tmp_path / "place")
    (place / "lib/liblora_c.a").write_bytes(b"old")
    before = files(place)
    limited = 'ulimit -f 100; exec make -C "$0" install-c PREFIX="$1"'  # files up to 50 KiB
    done = run(["sh", "-c", limited, str(ROOT), str(place)])
    assert done.returncode != 0 and "got too little; nothing was changed" in done.stderr
    assert files(place) == before and not list(place.glob(".lora_c*"))


@pytest.mark.parametrize("name", ["it's", 'say "so"', "a$b"])
def test_a_prefix_that_pkg_config_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    command = ["sh", str(ROOT / "tools/install_c.sh"), "install", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(TO=str(tmp_path / name)))
    assert done.returncode != 0 and "PREFIX: expected a path without quotes" in done.stderr and not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_a_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "include/lora_c/nn.h").mkdir(parents=True)
    done = make("install-c", tmp_path)
    assert (
        done.returncode != 0 and "expected a file or nothing at" in done.stderr and not (tmp_path / "lib/liblora_c.a").exists()
    )


# Root may write everywhere, unless it gives that up.
PLAIN = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(PLAIN) and shutil.which("setpriv") is None, reason="root may write everywhere")
def test_a_folder_without_rights_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "locked"
    place.mkdir(mode=0o555)
    done = run([*PLAIN, "make", "-C", str(ROOT), "install-c", f"PREFIX={place}"])
    assert done.returncode != 0 and "Permission denied" in done.stderr and not list(place.iterdir())

"""What a wheel for Windows takes that a machine with Linux lacks: Python's and NumPy's headers as they are there, a library to
link with in the place of python311.lib, and a look at what the finished extension asks of Windows.

Python's headers are the interpreter's here, with `tools/windows_pyconfig.h` for its pyconfig.h. NumPy's are those of its wheel
for Windows, whose types have other sizes. The import library has what the interpreter exports here: CPython marks both by the
same words (PyAPI_FUNC, PyAPI_DATA).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

PYCONFIG = Path(__file__).resolve().with_name("windows_pyconfig.h")
ABOUT = """
import json, os, sys, sysconfig, numpy
of = sysconfig.get_config_var
library = os.path.join(of("LIBDIR") or "", of("INSTSONAME") or "") if of("Py_ENABLE_SHARED") else ""
library = library if os.path.isfile(library) else sys.executable  # Debian's programs hold what their libraries do
print(json.dumps({
    "include": sysconfig.get_path("include"), "numpy": numpy.__version__, "exports": os.path.realpath(library),
    "version": "%d.%d" % sys.version_info[:2], "threaded": "t" if of("Py_GIL_DISABLED") else "",
}))
"""
# What every Windows 10 has: its kernel and the universal C library. Nothing else is there on a machine without compilers.
OF_WINDOWS = re.compile(r"(kernel32|ntdll|api-ms-win-crt-[a-z]+-l1-1-0)\.dll", re.IGNORECASE)
AMD64 = 0x8664


class Kit:
    """Headers and import library of one Python for Windows, made in a folder once."""

    def __init__(self, python: Path, folder: Path, run: Callable[..., None]) -> None:
        asked = subprocess.run([python, "-c", ABOUT], capture_output=True, text=True, check=True)
        self.about: dict[str, str] = json.loads(asked.stdout)
        self.abi = self.about["version"].replace(".", "") + self.about["threaded"]
        self.include, self.library = folder / "include", folder / f"libpython{self.abi}.a"
        self.folder, self.run = folder, run
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            self._headers()
            self._import_library()
            (folder / "ready").touch()

    @property
    def dll(self) -> str:
        return f"python{self.abi}.dll"

    def _headers(self) -> None:
        shutil.copytree(self.about["include"], self.include)
        threads = "#define Py_GIL_DISABLED 1\n" if self.about["threaded"] else ""
        (self.include / "pyconfig.h").write_text(threads + PYCONFIG.read_text(encoding="ascii"), encoding="ascii")
        version = self.about["version"]
        self.run(
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--platform", "win_amd64",
            "--python-version", version, "--abi", f"cp{self.abi}", "--dest", self.folder, f"numpy=={self.about['numpy']}",
        )  # fmt: skip
        (wheel,) = self.folder.glob("numpy-*.whl")
        with zipfile.ZipFile(wheel) as files:
            of = "numpy/_core/include/"
            for name in files.namelist():
                if name.startswith(of) and name.endswith(".h"):
                    path = self.include / name.removeprefix(of)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(files.read(name))
        wheel.unlink()

    def _import_library(self) -> None:
        definition = self.folder / f"python{self.abi}.def"
        functions, data = exports_of_elf(Path(self.about["exports"]))
        lines = [f"LIBRARY {self.dll}", "EXPORTS", *sorted(functions), *(f"{name} DATA" for name in sorted(data))]
        definition.write_text("\n".join(lines) + "\n", encoding="ascii")
        names = ("-D", self.dll, "-d", definition, "-l", self.library)
        self.run(sys.executable, "-m", "ziglang", "dlltool", "-m", "i386:x86-64", *names)


def exports_of_elf(path: Path) -> tuple[set[str], set[str]]:
    """The functions and the data of Python that a program or library of Linux exports."""
    from elftools.elf.elffile import ELFFile

    functions, data = set(), set()
    with path.open("rb") as file:
        for symbol in ELFFile(file).get_section_by_name(".dynsym").iter_symbols():
            if re.match("_?Py", symbol.name) and symbol["st_shndx"] != "SHN_UNDEF":
                (functions if symbol["st_info"]["type"] == "STT_FUNC" else data).add(symbol.name)
    if not functions:
        raise SystemExit(f"{path}: expected a program or library that exports Python's functions, got none")
    return functions, data


def check_extension(wheel: Path, kit: Kit) -> None:
    """Stop unless the wheel's extension is for x86-64, asks of Windows what every one has, and exports its start alone."""
    import pefile

    with zipfile.ZipFile(wheel) as files:
        names = [name for name in files.namelist() if name.endswith((".pyd", ".dll", ".so", ".lib", ".pdb"))]
        if names != [f"lora_c/_core.cp{kit.abi}-win_amd64.pyd"]:
            raise SystemExit(f"{wheel.name}: expected one library, lora_c/_core.cp{kit.abi}-win_amd64.pyd, got {names}")
        program = pefile.PE(data=files.read(names[0]))
    machine = program.FILE_HEADER.Machine
    imported = {entry.dll.decode() for entry in program.DIRECTORY_ENTRY_IMPORT}
    others = sorted(name for name in imported if name != kit.dll and not OF_WINDOWS.fullmatch(name))
    exported = [symbol.name.decode() for symbol in program.DIRECTORY_ENTRY_EXPORT.symbols]
    if others or kit.dll not in imported:
        raise SystemExit(f"{names[0]}: expected {kit.dll}, the kernel and the C library of Windows, got {sorted(imported)}")
    if exported != ["PyInit__core"] or machine != AMD64:
        raise SystemExit(f"{names[0]}: expected PyInit__core for x86-64, got {exported} for machine {machine:#x}")

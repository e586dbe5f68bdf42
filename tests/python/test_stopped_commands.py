"""Commands that are stopped, lose their reader or find the disk full at any moment: inputs stay, and nothing by halves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_moments import NEVER

import lora_c as lc
from lora_c.files import aside
from lora_c.files.atomic import atomic_file, atomic_folder
from lora_c.files.uninterrupted import uninterrupted

# {out}: the output, in a folder of the case
COMMANDS = {
    "merge": "merge --model {in}/model --adapter {in}/adapter --output-dir {out}/result --data {in}/data.txt",
    "merge to gguf": "merge --model {in}/bare --adapter {in}/adapter --output-dir {out}/result.gguf --no-report",
    "export": "export {in}/adapter {out}/result --to mlx --model {in}/model",
    "export to gguf": "export {in}/adapter {out}/result.gguf --to gguf --model {in}/model",
    "quantize": "quantize --model {in}/model --output-dir {out}/result --block-size 32",
    "eval": "eval --model {in}/model --adapter {in}/adapter --data {in}/data.txt",
    "generate": "generate --model {in}/model --max-new-tokens 12 --ignore-eos w3",
}
SIGNALS = {"INT": 130, "TERM": 143, "HUP": 129, "INT twice": 130, "terminal": 129}
# what else happens, the exit code, and whether a command that was met by it before its end has its result
OTHERS = {
    "terminal, HUP ignored": (1, True), "stdout closed": (141, True), "stdout full": (1, True),
    "stderr closed": (0, True), "stderr full": (0, True), "disk full 3000": (1, False),
}  # fmt: skip
MOMENTS = 10
# Every kind at every moment with LORA_C_ALL_MOMENTS; else each kind at one of them, other ones for other commands.
ALL = bool(os.environ.get("LORA_C_ALL_MOMENTS"))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Place:
    """Inputs, and a process that runs commands on them in children of its own."""

    def __init__(self, folder: Path) -> None:
        self.inputs, self.folder, self._n = folder / "in", folder, 0
        helper = Path(__file__).with_name("command_moments.py")
        environment = os.environ | {
            "OPENBLAS_NUM_THREADS": "1", "LORA_C_NUM_THREADS": "1", "PYTHONPATH": str(Path(lc.__file__).parents[1]),
        }  # fmt: skip
        self._server = subprocess.Popen(
            [sys.executable, str(helper)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self, command: str, kind: str, moment: int, before: Path | None = None, out: Path | None = None
    ) -> tuple[dict[str, Any], Path]:
        """Run one case; return what was seen of it, and the folder of its outputs."""
        self._n += 1
        folder = self.folder / f"case{self._n}"
        out = out or folder / "out"
        folder.mkdir()
        out.mkdir(exist_ok=True)
        if before is not None:
            shutil.copytree(before, out, dirs_exist_ok=True)
        words = [word.format(**{"in": self.inputs, "out": out}) for word in COMMANDS[command].split()]
        words += ["--overwrite"] if "{out}" in COMMANDS[command] else []  # always: it changes how much is called
        case = {"id": self._n, "folder": str(folder), "kind": kind, "moment": moment, "command": words}
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(case) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline()), out

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(scope="module")
def place(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("commands")
    inputs = folder / "in"
    tiny.write(inputs / "model", tiny.config, tiny.tensors(tiny.config))
    shutil.copytree(inputs / "model", inputs / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    model = lc.load_model(inputs / "model", progress=False)
    model.add_adapter(r=2, target_modules="all-linear")
    model.save_adapter(inputs / "adapter")
    (inputs / "data.txt").write_text("w3 w4 w5 w6 w7 w8 " * 20)
    place = Place(folder)
    yield place
    place.close()


class Whole:
    """A command that nothing meets: its calls, its result, and an older result that stands in its place."""

    def __init__(self, place: Place, command: str) -> None:
        seen, out = place.run(command, "nothing", NEVER)
        assert seen["code"] == 0, seen
        self.calls, self.first_save = json.loads((out.parent / "counts").read_text())
        self.result = contents(out)
        self.older = out.parent / "older"
        shutil.copytree(out, self.older)
        for path in self.older.rglob("*"):  # files of the same names, and one of the user's own
            if path.suffix in (".json", ".gguf"):
                path.write_bytes(path.read_bytes() + b"\n")
        for folder in self.older.iterdir():
            if folder.is_dir():
                (folder / "notes.txt").write_text("mine")
        self.before = contents(self.older)
        self.after = {**self.before, **self.result}

    def moments(self) -> list[int]:
        """Ten: half of them while the result is written."""
        start = self.first_save or self.calls // 2
        return [1 + i * (start - 1) // 5 for i in range(5)] + [start + i * (self.calls - start) // 5 for i in range(5)]


@pytest.fixture(scope="module")
def wholes(place: Place) -> dict[str, Whole]:
    return {command: Whole(place, command) for command in COMMANDS}


def cases() -> Iterator[Any]:
    signals, kinds = [*SIGNALS], [*SIGNALS, *OTHERS]
    for at, command in enumerate(COMMANDS):
        for moment in range(MOMENTS):
            chosen = [kinds[(3 * at + moment) % len(kinds)]]
            if command in ("merge", "export"):
                chosen.append(signals[(at + moment) % len(signals)])
            for kind in kinds if ALL else dict.fromkeys(chosen):
                yield pytest.param(command, kind, moment, id=f"{command}-{kind}-{moment}")


@pytest.mark.parametrize(("command", "kind", "moment"), list(cases()))
def test_a_command_that_is_met_by_something(
    place: Place, wholes: dict[str, Whole], command: str, kind: str, moment: int
) -> None:
    whole = wholes[command]
    inputs = contents(place.inputs)
    is_second = moment % 2 == 1  # something stands in the output's place
    seen, out = place.run(command, kind, whole.moments()[moment], whole.older if is_second else None)
    assert "Traceback" not in seen["stderr"] and "Exception ignored" not in seen["stderr"], seen["stderr"]
    assert contents(place.inputs) == inputs
    found, before, after = contents(out), whole.before if is_second else {}, whole.after if is_second else whole.result
    assert not [name for name in found if "lora-c-" in name], "something unfinished was left"
    is_done = found == after
    reports = {name for name in after if ".merge_report" in name or "/merge_report" in name}  # these come after the result
    without = {name: digest for name, digest in found.items() if name not in reports}
    assert is_done or without in ({k: d for k, d in t.items() if k not in reports} for t in (before, after)), (found, seen)
    if kind in SIGNALS:
        if seen["code"] == 0 and is_done and command.startswith("export"):
            return  # one that was dropped and sent again found the command at its end
        assert seen["code"] == SIGNALS[kind], seen
        assert kind == "terminal" or seen["stderr"].endswith("\nlora-c: stopped\n"), seen
    else:
        code, has_result = OTHERS[kind]
        if kind == "disk full 3000" and (is_done or command in ("eval", "generate")):
            code = 0
        assert seen["code"] == code, seen
        assert is_done or not has_result, seen
        assert seen["stderr"].count("lora-c: ") == (code == 1), seen


@pytest.mark.skipif(os.getuid() != 0, reason="mounting is for root")
@pytest.mark.parametrize(
    ("command", "kib"), [("merge", 8), ("merge", 24), ("merge to gguf", 16), ("export", 4), ("quantize", 32)]
)
def test_a_file_system_that_fills(place: Place, wholes: dict[str, Whole], tmp_path: Path, command: str, kib: int) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting is not possible here")
    try:
        (tmp_path / "out").mkdir()
        seen, out = place.run(command, "nothing", 0, out=tmp_path / "out")
        assert seen["code"] == 1 and seen["stderr"].count("\n") == 1, seen
        assert "expected room on the disk, got No space left on device" in seen["stderr"]
        assert contents(out) == {} and os.listdir(tmp_path / "out") == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_the_libraries_are_loaded_ends_with_its_status(number: int, code: int) -> None:
    program = (
        "import builtins, os, sys\n"
        "real = builtins.__import__\n"
        "def hooked(name, *args, **options):\n"
        f"    if name == 'numpy': os.kill(os.getpid(), {int(number)})\n"
        "    return real(name, *args, **options)\n"
        "builtins.__import__ = hooked\n"
        "from lora_c.cli import main\n"
        "main()\n"
    )
    words = ["eval", "--model", "x", "--data", "y"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (code, "lora-c: stopped")


HANDLERS = (
    "import os, signal, sys, time\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it\n"
    "from lora_c.cli.signals import install_handlers\n"
    "install_handlers()\n"
)


def test_a_signal_that_python_drops_is_sent_again(alone: Any) -> None:
    said = alone(HANDLERS + (
        "def closing():\n"
        "    try:\n"
        "        yield\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        any(())\n"
        "generator = closing()\n"
        "next(generator)\n"
        "del generator  # what is raised in there is dropped\n"
        "print('goes on')\n"
        "try:\n"
        "    time.sleep(5)\n"
        "except KeyboardInterrupt as error:\n"
        "    print('stopped by', error.number)\n"
    ))  # fmt: skip
    assert said == "goes on\nstopped by 15\n"


def test_signals_after_the_first_wait_for_what_is_taken_back_and_end_what_hangs(alone: Any) -> None:
    code = HANDLERS + (
        "import lora_c.cli.signals as signals\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('taken back', flush=True)\n"
        "signals.PATIENCE = 0.0\n"
        "if os.fork() == 0:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still there')\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    assert alone(code) == "taken back\n143\n"


def test_an_exception_of_a_handler_waits_for_the_end_of_a_block() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                seen.append("inner")
            seen.append("outer")
        with pytest.raises(OSError, match="own"), uninterrupted():
            raise OSError("own")
        assert seen == ["inner", "outer"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_ctrl_c_in_a_notebook_leaves_no_unfinished_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Between the creation of the file and the line that would remove it, and while it is removed."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    create = aside._create

    def interrupted(target: Path, folder: bool) -> tuple[Path, int]:
        made = create(target, folder)
        os.kill(os.getpid(), signal.SIGINT)
        return made

    monkeypatch.setattr(aside, "_create", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            with atomic_file(tmp_path / "x") if kind == "file" else atomic_folder(tmp_path / "x"):
                pass
        assert list(tmp_path.iterdir()) == []
    finally:
        signal.signal(signal.SIGINT, before)

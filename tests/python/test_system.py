"""What the package does where the system lacks what Linux has; Windows and macOS are played by taking it away."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lora_c as lc
from lora_c.chat import piped
from lora_c.cli.chat import _talk
from lora_c.configs.serving import ServeConfig
from lora_c.display.steady_stream import steady
from lora_c.files import aside, atomic, system
from lora_c.serve import listening

BASE = Path(lc.__file__).parent / "base_model"
# Python as on Windows, as far as the package asks: no locks, no limits, no terminals, no SIGHUP, no handles of folders, pipes
# of few letters, and SIGBREAK, which is SIGUSR1 here.
LIKE_WINDOWS = """
import os, signal, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
del signal.SIGHUP, signal.SIGKILL, os.sched_getaffinity, os.pread, os.preadv, os.memfd_create
del os.O_NOFOLLOW, os.O_NONBLOCK, os.O_DIRECTORY
signal.SIGBREAK = signal.SIGUSR1
sys.stdout.reconfigure(encoding="cp1252")
from lora_c.files import system
system.FOLDERS_OPEN = system.RENAMES_OPEN = False
system.HAS_CODE_PAGES = True
opened = os.open
def open_file(path, *rest, **more):
    assert not os.path.isdir(path), f"{path}: a folder is opened"
    return opened(path, *rest, **more)
os.open = open_file
from lora_c.cli import main
main()
"""


def run(folder: Path, *arguments: str, typed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIKE_WINDOWS, *arguments]
    environment = os.environ | variables
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", input=typed, env=environment)


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


def test_a_chat_without_what_only_posix_has(tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "--model", str(BASE), "--max-new-tokens", "4", typed="/system Grüße → alle\n/system\nWho?\n")
    assert done.returncode == 0, done.stderr
    assert "Grüße → alle" in done.stderr and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(("variables", "written"), [({}, "→ ü\n".encode()), ({"PYTHONIOENCODING": "cp1252"}, b"-> \xfc\n")])
def test_a_pipe_gets_utf8_where_python_takes_letters_of_the_country(variables: dict[str, str], written: bytes) -> None:
    code = (
        "import sys; sys.stdout.reconfigure(encoding='cp1252')\n"
        "from lora_c.files import system; system.HAS_CODE_PAGES = True\n"
        "from lora_c.cli.streams import fit_streams; fit_streams(); print('→ ü')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | variables, check=True)
    assert done.stdout == written


def test_errors_on_a_console_of_windows_keep_their_letters() -> None:
    class _WindowsConsoleIO(io.RawIOBase):
        """Takes UTF-8; what goes past it, to its descriptor, would be shown as other letters."""

        shown = b""

        def writable(self) -> bool:
            return True

        def fileno(self) -> int:
            return writer

        def write(self, data: Any) -> int:
            self.shown += bytes(data)
            return len(data)

    reader, writer = os.pipe()
    for buffered in (False, True):
        console = _WindowsConsoleIO()
        stream = io.TextIOWrapper(io.BufferedWriter(console) if buffered else console, "utf-8", write_through=True)
        print("→ ü", file=steady(stream))
        assert console.shown == "→ ü\n".encode()
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_terminal_without_termios_gives_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "termios", None)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert _talk() is piped.talk
    assert capsys.readouterr().err == ""  # no package is missing


def test_a_server_without_what_only_posix_has(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    model = lc.load_model(BASE, progress=False)
    model.add_adapter(lc.LoraConfig(r=2))
    model.save_adapter(tmp_path / "adapters" / "own")
    words = ["serve", "--model", str(BASE), "--adapters", str(tmp_path / "adapters"), "--port", "0"]
    process = subprocess.Popen([sys.executable, "-c", LIKE_WINDOWS, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        url = next(line.split()[1] for line in process.stdout if line.startswith("listening"))
        body = json.dumps({"model": "own", "max_tokens": 2, "messages": [{"role": "user", "content": "Who?"}]}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 2
        process.send_signal(signal.SIGUSR1)  # Ctrl-Break
        assert process.wait(60) == 0


def test_two_servers_never_share_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    exclusive = socket.SO_REUSEPORT  # stands for a number that Linux lacks
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", exclusive, raising=False)
    try:
        with importlib.reload(listening).bound(ServeConfig(port=0)) as door:
            options = [door.getsockopt(socket.SOL_SOCKET, option) for option in (exclusive, socket.SO_REUSEADDR)]
            assert options == [1, 0]
    finally:
        monkeypatch.undo()
        importlib.reload(listening)


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

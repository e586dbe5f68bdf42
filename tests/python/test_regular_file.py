import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_c.errors import CheckpointError, DataError, LoraCError
from lora_c.files.regular_file import check_regular, open_regular, read_regular
from lora_c.model.opening import load_model

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes, devices and links")


def test_a_regular_file_is_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name, DataError) as file:
            assert file.read() == b"content"


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    Path("itself").symlink_to("itself")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, said in (
            ("pipe", "pipe: expected a regular file, got a named pipe; write what comes out of it"),
            ("link", "link: expected a regular file, got a named pipe"),
            ("itself", f"itself: expected a readable file, got: {os.strerror(errno.ELOOP)}"),
            ("socket", "socket: expected a regular file, got a socket"),
            ("/dev/zero", "/dev/zero: expected a regular file, got a character device"),
            (".", ".: expected a regular file, got a folder"),
            ("absent", "absent: expected a file, got nothing there"),
            ("a\0b", "expected a readable file, got: .*null"),
        ):
            for refuse in (open_regular, check_regular):
                with pytest.raises(CheckpointError, match=said):
                    refuse(name, CheckpointError)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_without_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch(mode=0)
    (tmp_path / "open").touch(mode=0o644)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above it need not be open to everybody
    with as_nobody():
        open_regular("open", DataError).close()
        with pytest.raises(DataError, match="expected a readable file, got: Permission denied"):
            open_regular("file", DataError)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
             "chat_template.jinja", "chat_template.json", "tokenizer.json"],
)  # fmt: skip
def test_a_file_that_claims_gigabytes_or_is_a_pipe_is_refused(tiny_model_dir: Path, name: str) -> None:
    file = tiny_model_dir / name
    with open(file, "wb") as sparse:
        sparse.truncate(10 << 30)
    with pytest.raises(LoraCError, match=rf"{name}: expected at most [\d,]+ bytes, got 10,737,418,240"):
        load_model(tiny_model_dir, progress=False)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(LoraCError, match=f"{name}: expected a regular file, got a named pipe"):
        load_model(tiny_model_dir, progress=False)


def test_a_file_is_read_whole_in_pieces_without_room_for_its_limit(tmp_path: Path) -> None:
    content = bytes(range(256)) * (3 << 12) + b"end"  # 3 MiB and 3 bytes
    (tmp_path / "file").write_bytes(content)
    assert read_regular(tmp_path / "file", DataError, len(content)) == content
    with pytest.raises(DataError, match="expected at most"):
        read_regular(tmp_path / "file", DataError, len(content) - 1)
    program = (
        "import resource, sys\n"
        "from lora_c.errors import DataError\n"
        "from lora_c.files.regular_file import read_regular\n"
        "pages = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + (64 << 20),) * 2)\n"
        "print(len(read_regular(sys.argv[1], DataError, 256 << 20)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{len(content)}\n", done.stderr

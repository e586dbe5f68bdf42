"""A chat in a pseudo-terminal, as a person types into it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lora_c as lc

pexpect = pytest.importorskip("pexpect")
pytest.importorskip("prompt_toolkit")

BASE = Path(lc.__file__).parent / "base_model"
PROMPT, MODEL = "you  ", "model"
CTRL_C, CTRL_D, BACKSPACE, ESCAPE, TAB = "\x03", "\x04", "\x7f", "\x1b", "\t"
# The command line; with LORA_C_TEST_DELAY a piece of an answer takes so long, so that there is time to type meanwhile.
LAUNCH = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it
from lora_c.model import model
stream, delay = model.Model.stream, float(os.environ.get("LORA_C_TEST_DELAY", 0))
def slowly(self, *args, **options):
    for piece in stream(self, *args, **options):
        time.sleep(delay)
        yield piece
model.Model.stream = slowly
from lora_c.cli import main
main()
"""


SPEAK = """
from lora_c.model import model
model.Model.stream = lambda *args, **options: iter(["<\\x1b", "[31mred\\x1b[0m and \\x1b]0;pw", "ned\\x07a title", ">"])
from lora_c.cli import main
main()
"""

# A callback of the prompt's loop fails, as one does that draws just when the terminal is closed.
DRAWS_IN_VAIN = """
import asyncio, prompt_toolkit
from lora_c.chat.prompt_signals import read_line
session = prompt_toolkit.PromptSession("you  ")
def fail():
    raise OSError(5, "no terminal")
session.app.after_render += lambda app: asyncio.get_running_loop().call_soon(fail)
try:
    read_line(session)
except OSError as error:
    print("ended by", error)
"""


# The command line where prompt_toolkit is not installed.
WITHOUT_EDITOR = """
import sys
from importlib import util
found = util.find_spec
util.find_spec = lambda name, *rest: None if name == "prompt_toolkit" else found(name, *rest)
sys.modules["prompt_toolkit"] = None
from lora_c.cli import main
main()
"""


class Chat:
    """A running chat: what is typed, and what is seen."""

    def __init__(self, folder: Path, *flags: object, delay: float = 0.0, columns: int = 80, shell: bool = False) -> None:
        self.folder, self._n = folder, 0
        # Without what says the size of another window.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment = inherited | {
            "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(folder / "state"), "LORA_C_TEST_DELAY": str(delay),
            "TERM": "xterm", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(BASE.parents[1]), "PS1": "$ ",
        }  # fmt: skip
        (folder / "launch.py").write_text(LAUNCH)
        command = [sys.executable, str(folder / "launch.py"), "chat", "--model", str(BASE), *map(str, flags)]
        options: dict[str, Any] = {
            "env": environment, "encoding": "utf-8", "timeout": 30, "cwd": str(folder), "dimensions": (24, columns),
        }  # fmt: skip
        if shell:
            self.child = pexpect.spawn("bash", ["--norc", "--noediting"], **options)
            self.child.delaybeforesend = 0
            self.child.sendline(" ".join(command))
        else:
            self.child = pexpect.spawn(command[0], command[1:], **options)
            self.child.delaybeforesend = 0
        self.child.expect(PROMPT)

    def type(self, text: str) -> None:
        self.child.send(text)

    def see(self, pattern: str) -> str:
        self.child.expect(pattern)
        return str(self.child.before)

    def ask(self, text: str) -> str:
        """Send a message; return what is seen of the answer."""
        self.type(text + "\r")
        self.see(MODEL)
        return self.see(PROMPT)

    def complete(self, begun: str, rest: str) -> None:
        """Let Tab complete a line, and send it."""
        self.type(begun)
        self.see(begun[-1])
        self.type(TAB)
        self.see(rest)
        self.type("\r")

    def questions(self) -> list[str]:
        """What the model was asked, as /save has it."""
        self._n += 1
        file = self.folder / f"saved{self._n}.jsonl"
        self.type(f"/save {file}\r")
        self.see("is saved")
        self.see(PROMPT)
        messages = json.loads(file.read_text("utf-8"))["messages"]
        return [message["content"] for message in messages if message["role"] == "user"]

    def leave(self) -> None:
        self.type(CTRL_D)
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert (self.child.exitstatus, self.child.signalstatus) == (0, None)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Chat]]:
    running = []

    def start(*flags: object, **options: Any) -> Chat:
        running.append(Chat(tmp_path, "--max-new-tokens", 6, *flags, **options))
        return running[-1]

    yield start
    for chat in running:
        chat.child.close(force=True)


@pytest.fixture(scope="module")
def long_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    chat = Chat(tmp_path_factory.mktemp("chat"), "--max-new-tokens", 6)
    yield chat
    chat.leave()


@pytest.fixture
def chat(long_running: Chat) -> Chat:
    """One chat for several tests; each finds it without turns."""
    long_running.type("/reset\r")
    long_running.see("forgotten")
    long_running.see(PROMPT)
    return long_running


def test_messages_of_several_lines_are_one_message(chat: Chat) -> None:
    chat.ask("\x1b[200~first\r\rthird\x1b[201~")  # a paste with a blank line
    chat.ask("one" + ESCAPE + "\rtwo")
    chat.ask("one\\\rtwo")
    chat.ask('"""\r\rone\rtwo"""')
    chat.ask("/" + "/etc/passwd")
    assert chat.questions() == ["first\n\nthird", "one\ntwo", "one\ntwo", "one\ntwo", "/etc/passwd"]


def test_hangul_is_edited_by_syllables_and_two_columns_wide(chat: Chat) -> None:
    chat.type("한글")
    chat.see("한글")
    chat.type(BACKSPACE)
    assert "\x1b[2D" in chat.see(re.escape("\x1b[K"))  # two columns back
    chat.ask("국")
    chat.ask("가나" + "\x1b[D" + BACKSPACE + "다")
    letters = unicodedata.normalize("NFD", "각한")
    assert len(letters) == 6
    chat.ask(letters + BACKSPACE)
    chat.ask("👩‍👩‍👧x" + "\x1b[D" + BACKSPACE)
    assert chat.questions() == ["한국", "다나", unicodedata.normalize("NFD", "각"), "x"]


def test_ctrl_c_cuts_the_answer(start: Callable[..., Chat]) -> None:
    chat = start("--ignore-eos", "--max-new-tokens", 400, delay=0.05)
    began = time.monotonic()
    for _ in range(2):
        chat.type("Hello\r")
        chat.see(MODEL + r".*[a-z]+ [a-z]+ ")
        chat.type(CTRL_C)
        chat.see("dropped")
        chat.see(PROMPT)
    assert time.monotonic() - began < 15  # whole answers take 40
    chat.type("/save a.jsonl\r")
    chat.see("expected a conversation with an answer, got none")
    chat.see(PROMPT)
    chat.type("Hello\r")
    chat.see(MODEL + r".*[a-z]+ [a-z]+ ")
    for _ in range(8):  # one too many ends no chat
        os.kill(chat.child.pid, signal.SIGINT)
    chat.see("dropped")
    chat.see(PROMPT)
    chat.leave()


def test_what_is_typed_while_an_answer_comes_waits_for_the_prompt(start: Callable[..., Chat]) -> None:
    chat = start("--ignore-eos", "--max-new-tokens", 20, delay=0.05)
    chat.type("Hello\r")
    assert re.findall("\x1b\\[\\?2004([hl])", chat.see(MODEL))[-1] == "h"  # a paste is marked as one
    chat.see(r"[a-z]+ ")
    chat.type("\x1b[200~wait\r\rb\x1b[201~")
    assert "wait" not in chat.see(PROMPT)  # not shown in the middle of the answer
    chat.see("wait")
    chat.ask("")
    assert chat.questions() == ["Hello", "wait\n\nb"]
    chat.leave()


def test_ctrl_c_at_the_prompt_clears_the_line_and_at_an_empty_one_says_how_to_leave(chat: Chat) -> None:
    chat.type("abc" + CTRL_C)
    chat.ask("def")
    chat.type(CTRL_C)
    chat.see("Ctrl-D or /bye leaves")
    chat.see(PROMPT)
    assert chat.questions() == ["def"]
    chat.type("ab" + CTRL_D)  # not empty: nothing to delete, and no end
    chat.ask("c")
    assert chat.questions() == ["def", "abc"]


def test_commands_are_completed_and_carried_out(start: Callable[..., Chat]) -> None:
    chat = start("--system", "Be brief.")
    chat.ask("Hello")
    chat.complete("/ret", "ry")
    chat.see(MODEL)
    chat.see(PROMPT)
    chat.complete("/sys", "tem")
    chat.see("Be brief.")
    chat.see(PROMPT)
    chat.complete("/adapter n", "one")
    chat.see("The base answers alone")
    chat.see(PROMPT)
    chat.type("/help\r")
    chat.see("/reset .*Forget")
    chat.see(PROMPT)
    chat.type("/wrong word\r")
    chat.see("/wrong: expected a command")
    chat.see(PROMPT)
    assert chat.questions() == ["Hello"]
    chat.type("/reset\r")
    chat.see("forgotten")
    chat.type("/bye\r")
    chat.child.expect(pexpect.EOF)
    chat.child.close()
    assert chat.child.exitstatus == 0


def test_a_full_context_says_so_and_goes_on(chat: Chat) -> None:
    chat.ask("The mouse was fat. " * 60)
    chat.type("The mouse was fat. " * 60 + "\r")
    chat.see("the context is full: the oldest turn was left out")
    chat.see(MODEL)
    chat.see(PROMPT)
    chat.type("The mouse was fat. " * 120 + "\r")
    chat.see("message: expected fewer tokens")
    chat.see(PROMPT)
    assert chat.questions() == ["The mouse was fat. " * 60]


def test_a_window_of_40_columns(start: Callable[..., Chat]) -> None:
    chat = start(columns=40)
    text = "a line of words that is longer than the window and then some"
    chat.ask(text)
    chat.type("/help\r")
    chat.see("This list")
    shown = re.sub(r"\x1b\[[0-?]*[a-zA-Z]", "", chat.see(PROMPT))
    assert "/adapter [NAME or PATH]" in shown and max(map(len, shown.splitlines())) <= 40
    assert chat.questions() == [text]
    chat.leave()


def test_history_is_kept_in_a_private_file(start: Callable[..., Chat], tmp_path: Path) -> None:
    chat = start()
    chat.ask("한글 first")
    chat.leave()
    file = tmp_path / "state/lora-c/chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    chat = start()
    chat.type("\x1b[A")  # up
    chat.see("first")
    chat.ask(" again")
    assert chat.questions() == ["한글 first again"]
    chat.leave()


def test_a_history_that_fails_ends_nothing(start: Callable[..., Chat], tmp_path: Path) -> None:
    (tmp_path / "state/lora-c").mkdir(parents=True)
    os.mkfifo(tmp_path / "state/lora-c/chat_history")
    chat = start()
    chat.type("Hello\r")
    chat.see("The history of lines is not kept")
    chat.see(MODEL)
    chat.see(PROMPT)
    assert "not kept" not in chat.ask("Hello")
    chat.type("\x1b[A" * 2 + " again\r")  # known until the end
    chat.see(MODEL)
    chat.see(PROMPT)
    assert chat.questions() == ["Hello", "Hello", "Hello again"]
    chat.leave()


def test_nothing_that_was_typed_reaches_the_shell(start: Callable[..., Chat], tmp_path: Path) -> None:
    chat = start(shell=True)
    chat.type("Hello\r" + CTRL_D + CTRL_D + "touch typed\r" + CTRL_D)
    chat.see(re.escape("$ "))
    chat.type("echo status $?; stty -a; echo al''ive\r")
    seen = chat.see("alive")
    assert "status 0" in seen and re.search(r"(?<!-)\becho\b", seen) and re.search(r"(?<!-)\bicanon\b", seen)
    assert not (tmp_path / "typed").exists()


@pytest.mark.parametrize(
    ("number", "code", "moment"), [(15, 143, "prompt"), (15, 143, "answer"), (1, 129, "prompt"), (1, 129, "answer")]
)
def test_a_signal_leaves_the_terminal_as_it_was(start: Callable[..., Chat], number: int, code: int, moment: str) -> None:
    chat = start("--ignore-eos", "--max-new-tokens", 400, delay=0.05, shell=True)
    if moment == "answer":
        chat.type("Hello\r")
        chat.see(MODEL + r".*[a-z]+ [a-z]+ ")
        chat.type("touch typed\r")
        time.sleep(0.1)
    group = os.tcgetpgrp(chat.child.child_fd)  # the job in the foreground
    os.kill(group, number)
    chat.see("lora-c: stopped")
    chat.see(re.escape("$ "))
    chat.type("echo status $?; stty -a; echo al''ive\r")
    seen = chat.see("alive")
    assert not (chat.folder / "typed").exists()
    assert f"status {code}" in seen and re.search(r"(?<!-)\becho\b", seen) and re.search(r"(?<!-)\bicanon\b", seen)


@pytest.mark.parametrize("moment", ["prompt", "answer"])
def test_a_terminal_that_is_closed_ends_the_chat(start: Callable[..., Chat], moment: str) -> None:
    chat = start("--ignore-eos", "--max-new-tokens", 400, delay=0.05)
    if moment == "answer":
        chat.type("Hello\r")
        chat.see(MODEL + r".*[a-z]+ [a-z]+ ")
    chat.child.ptyproc.fileobj.close()
    chat.child.ptyproc.closed = True
    limit = time.monotonic() + 30
    while chat.child.isalive():
        assert time.monotonic() < limit, "the chat goes on without its terminal"
        time.sleep(0.01)
    assert chat.child.exitstatus == 129


def test_a_prompt_that_cannot_be_drawn_ends() -> None:
    environment = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    child = pexpect.spawn(sys.executable, ["-c", DRAWS_IN_VAIN], env=environment, encoding="utf-8", timeout=30)
    child.expect(re.escape("ended by [Errno 5] no terminal"))
    child.close(force=True)


def test_chat_and_generate_show_a_terminal_no_control_sequences(tmp_path: Path) -> None:
    for name in ("chat", "generate"):
        command = [sys.executable, "-c", SPEAK, name, "--model", str(BASE), *(["Hello"] if name == "generate" else [])]
        environment = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
        child = pexpect.spawn(command[0], command[1:], env=environment, encoding="utf-8", timeout=30)
        if name == "chat":
            child.expect(PROMPT)
            child.send("Hello\r")
        child.expect("<(.*)>")
        assert child.match[1] == "red and a title"
        child.close(force=True)


def test_a_terminal_that_can_do_nothing_gets_no_codes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lora_c", "chat", "--model", str(BASE), "--max-new-tokens", "4"]
    child = pexpect.spawn(command[0], command[1:], env=os.environ | {"TERM": "dumb"}, encoding="utf-8", timeout=30)
    child.setecho(False)
    child.send("Hello\n/help\n" + CTRL_D)
    child.expect(pexpect.EOF)
    assert "/retry" in child.before and "\x1b" not in child.before
    child.close()
    assert child.exitstatus == 0


def test_without_its_editor_a_terminal_has_plain_lines_and_hears_what_brings_it(tmp_path: Path) -> None:
    command = ["-c", WITHOUT_EDITOR, "chat", "--model", str(BASE), "--max-new-tokens", "4", "--temperature", "0"]
    child = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=30, cwd=str(tmp_path))
    child.expect("note      lines have no editing and no history: prompt_toolkit is not installed")
    child.expect(re.escape("(pip install 'lora-c[chat]')"))
    child.sendline("/help")
    child.expect("/retry")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0

"""Conversations, their commands, and what of an answer may reach a terminal: all of a chat that needs no terminal."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from device_values import write_values

import lora_c as lc
from lora_c.chat.commands import COMMANDS, KEYS, Commands, Outcome
from lora_c.chat.conversation import Conversation, Turn
from lora_c.cli import cli
from lora_c.configs import GenerationConfig
from lora_c.display.printable import PrintablePieces, printable
from lora_c.errors import ConfigError, DataError, LoraCError, SaveError
from lora_c.text.prompts import prompt_ids

BASE = Path(lc.__file__).parent / "base_model"
SHORT = GenerationConfig(max_new_tokens=4)


@pytest.fixture(scope="module")
def base() -> lc.Model:
    """The model that ships."""
    return lc.load_model(BASE, progress=False)


@pytest.fixture
def adapter(base: lc.Model, tmp_path: Path) -> Iterator[Path]:
    """An adapter of the base that changes its answers, in a file; the base is as it was before and after."""
    base.add_adapter(r=2, name="made here")
    for parameter in base.trainable_parameters():
        write_values(parameter, 0.3)
    base.save_adapter(tmp_path / "tuned")
    base.delete_adapter("made here")
    yield tmp_path / "tuned"
    for name in list(base.adapter_names):
        base.delete_adapter(name)


def said(reply: Any) -> str:
    return "".join(reply.pieces)


def answer(commands: Commands, line: str) -> str:
    outcome = commands.run(line)
    assert outcome.reply is not None
    return said(outcome.reply)


# -- the conversation -----------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_messages_without_a_chat(base: lc.Model) -> None:
    chat = Conversation(base, SHORT, "Be brief.")
    messages: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    for question in ("Hello", "Who slept?", "한국"):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": base.generate(messages, SHORT)})
        assert said(chat.ask(question)) == messages[-1]["content"]
        assert chat.messages() == messages


def test_an_answer_that_is_cut_is_dropped_with_its_question_and_can_be_asked_for_again(base: lc.Model) -> None:
    chat = Conversation(base, GenerationConfig(max_new_tokens=40, ignore_eos=True))
    said(chat.ask("Hello"))
    before = chat.messages()
    pieces = chat.ask("Hello").pieces
    assert next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert chat.messages() == before
    said(chat.ask_again())
    assert [m["content"] for m in chat.messages()[::2]] == ["Hello", "Hello"]
    cut = chat.ask_again().pieces  # of an answer that is there: it stays until the new one is whole
    next(cut)
    del cut
    assert len(chat.turns) == 2
    said(chat.ask_again())
    assert len(chat.turns) == 2


def test_asking_again_draws_anew_and_a_seed_makes_the_chat_repeatable(base: lc.Model) -> None:
    def answers(**options: Any) -> list[str]:
        chat = Conversation(base, GenerationConfig(max_new_tokens=12, temperature=3.0, **options))
        return [said(chat.ask("Hello")), said(chat.ask_again()), said(chat.ask_again())]

    drawn, seeded = answers(), answers(seed=5)
    assert len(set(drawn)) == 3 and answers() != drawn
    assert len(set(seeded)) == 3 and answers(seed=5) == seeded
    assert seeded[0] == base.generate([{"role": "user", "content": "Hello"}], max_new_tokens=12, temperature=3.0, seed=5)
    greedy = Conversation(base, SHORT)
    assert said(greedy.ask("Hello")) == said(greedy.ask_again())


def test_the_oldest_turns_go_when_the_context_is_full_and_the_system_message_stays(base: lc.Model) -> None:
    chat = Conversation(base, GenerationConfig(max_new_tokens=8), "Be brief.")
    forgotten = []
    for i in range(12):
        reply = chat.ask(f"{i} " + "The mouse was fat. " * 12)
        forgotten.append(reply.forgotten)
        said(reply)
        messages = chat.messages()
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert len(prompt_ids(base, messages[:-1])) + 8 <= base.context_length
    assert sum(forgotten) and len(chat.turns) == 12 - sum(forgotten)
    assert chat.turns[-1].question.startswith("11 ") and chat.turns[0].question.startswith(f"{sum(forgotten)} ")


def test_an_answer_has_room_in_a_context_that_is_nearly_full(base: lc.Model) -> None:
    chat = Conversation(base, GenerationConfig(max_new_tokens=256))
    chat.turns = [Turn("Hello", "The mouse was fat. " * 85)]
    n = len(prompt_ids(base, [*chat.messages(), {"role": "user", "content": "Hi"}]))
    assert base.context_length - 128 < n < base.context_length  # fits, and leaves an answer less than a quarter
    assert chat.ask("Hi").forgotten == 1


def test_a_message_longer_than_the_context_is_refused_and_changes_nothing(base: lc.Model) -> None:
    chat = Conversation(base, SHORT)
    said(chat.ask("Hello"))
    before = chat.messages()
    with pytest.raises(DataError, match="message: expected fewer tokens than the model's context of 512, got .*shorten it"):
        chat.ask("The mouse was fat. " * 200)
    assert chat.messages() == before and said(chat.ask("Hello"))


def test_a_model_without_a_template_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match="expected a chat template for chat.*use lora-c generate"):
        Conversation(lc.load_model(tiny_model_dir), SHORT)


# -- commands -------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command(base: lc.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands(Conversation(base, SHORT))
    for columns in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = commands.run("/help").said
        assert all(name in text for name in (*COMMANDS, *KEYS)) and max(map(len, text.splitlines())) <= columns
    for name in set(COMMANDS) - {"/retry", "/save"}:  # these need a conversation
        commands.run(name)
    assert all(commands.run(name).leaves for name in ("/bye", "/exit", "/quit"))


@pytest.mark.parametrize(
    ("line", "hint"),
    [("/rest", "did you mean '/reset'?"), ("/etc/passwd is what?", "write two, //etc/passwd"), ("/", "//"),
     ("/foo\nbar", "/foo: expected a command"), ("/RESET", "expected a command")],
)  # fmt: skip
def test_an_unknown_command_is_not_sent(base: lc.Model, line: str, hint: str) -> None:
    chat = Conversation(base, SHORT)
    with pytest.raises(ConfigError) as caught:
        Commands(chat).run(line)
    assert hint in str(caught.value) and chat.turns == []


def test_two_slashes_send_one_and_an_empty_line_sends_nothing(base: lc.Model) -> None:
    chat = Conversation(base, SHORT)
    commands = Commands(chat)
    answer(commands, "//etc/passwd\n\nis what?")
    assert chat.turns[0].question == "/etc/passwd\n\nis what?"
    assert commands.run("") == commands.run("  \n ") == Outcome()


def test_reset_forgets_the_turns_alone(base: lc.Model) -> None:
    chat = Conversation(base, SHORT, "Be brief.")
    commands = Commands(chat)
    answer(commands, "Hello")
    assert "system message stays" in commands.run("/reset").said
    assert chat.messages() == [{"role": "system", "content": "Be brief."}]
    with pytest.raises(DataError, match="/retry: expected a question before it"):
        commands.run("/retry")


def test_retry_replaces_the_last_answer(base: lc.Model) -> None:
    chat = Conversation(base, SHORT)
    commands = Commands(chat)
    first = answer(commands, "Hello")
    assert answer(commands, "/retry") == first and len(chat.turns) == 1


def test_the_system_message_is_set_shown_and_removed(base: lc.Model) -> None:
    chat = Conversation(base, SHORT)
    commands = Commands(chat)
    assert commands.run("/system").said == "There is no system message."
    commands.run("/system Be brief,\n  and kind.")
    assert commands.run("/system").said == "Be brief,\n  and kind."
    answer(commands, "Hello")
    assert chat.messages()[0] == {"role": "system", "content": "Be brief,\n  and kind."}
    with pytest.raises(LoraCError):
        commands.run("/system \ud800")
    commands.run("/system none")
    assert chat.messages()[0]["role"] == "user"


def test_adapters_are_loaded_and_switched_in_the_middle(
    base: lc.Model, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Conversation(base, GenerationConfig(max_new_tokens=12))
    commands = Commands(chat)
    alone = answer(commands, "Hello")
    monkeypatch.setenv("HOME", str(adapter.parent))
    assert commands.run("/adapter ~/tuned").said == f"tuned ({adapter}) is in use."
    tuned = answer(commands, "/retry")
    assert tuned != alone and len(chat.turns) == 1
    assert commands.run("/adapter none").said == "The base answers alone." and answer(commands, "/retry") == alone
    assert commands.run("/adapter tuned").said.endswith("is in use.") and answer(commands, "/retry") == tuned
    commands.run(f"/adapter {adapter}")  # the same one, not loaded a second time
    assert base.adapter_names == ["tuned"]
    assert commands.run("/adapter").said == f"* tuned ({adapter})\n  none (the base alone)"


def test_an_adapter_that_is_not_there_or_not_one_changes_nothing(base: lc.Model, adapter: Path, tmp_path: Path) -> None:
    commands = Commands(Conversation(base, SHORT))
    commands.run(f"/adapter {adapter}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoraCError, match=r"nowhere: expected .* \(here are: tuned, none\)"):
        commands.run("/adapter nowhere")
    with pytest.raises(LoraCError):
        commands.run(f"/adapter {tmp_path / 'empty'}")
    assert base.active_adapter == "tuned" and base.adapter_names == ["tuned"]


@pytest.mark.filterwarnings("ignore:.*the tokenizer has no token for:lora_c.notices.LoraCWarning")  # of the demo
def test_a_saved_conversation_is_training_data_and_nothing_is_overwritten(base: lc.Model, tmp_path: Path) -> None:
    chat = Conversation(base, SHORT, "Be brief.")
    commands = Commands(chat)
    with pytest.raises(ConfigError, match="none yet"):
        commands.run(f"/save {tmp_path / 'a.jsonl'}")
    answer(commands, "한글\n\n둘째 줄")
    file = tmp_path / "a file.jsonl"
    commands.run(f"/save {file}")
    assert [json.loads(line) for line in file.read_text("utf-8").splitlines()] == [{"messages": chat.messages()}]
    data = lc.load_dataset(file, base.tokenizer)
    assert len(data) == 1 and data.n_predicted > 0
    before = file.read_bytes()
    for line, error in (
        (f"/save {file}", SaveError), ("/save", ConfigError), (f"/save {tmp_path / 'a.txt'}", ConfigError),
        (f"/save {tmp_path}", ConfigError), (f"/save {file}/b.jsonl", SaveError),
    ):  # fmt: skip
        with pytest.raises(error):
            commands.run(line)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a file.jsonl"]


# -- what reaches a terminal ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"), ("\x1b]0;title\x07text", "text"), ("\x1b]52;c;aGk=\x1b\\text", "text"),
        ("\x1bc\x1b(Btext", "text"), ("\x9b31mtext", "text"), ("a\r\nb\rc\x08d\x00", "a\nbcd"), ("tab\there", "tab\there"),
        ("\x1b]0;" + "x" * 300, "0;" + "x" * 300), ("\x1b]0;a\nb", "0;a\nb"), ("end\x1b", "end"), ("end\x1b[", "end"),
        ("한글 😀 \u200d", "한글 😀 \u200d"), ("\x1bP1$r0m\x1b\\x", "x"), ("a\x1b\x1b[2Jb", "ab"),
    ],
)  # fmt: skip
def test_control_sequences_of_a_model_do_not_reach_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    for size in (1, 2, 3, len(text)):
        pieces = PrintablePieces()
        parts = [pieces.push(text[i : i + size]) for i in range(0, len(text), size)]
        joined = "".join([*parts, pieces.flush()])
        assert joined == shown and not any(ord(c) < 32 and c not in "\n\t" for c in joined)


# -- without a terminal ---------------------------------------------------------------------------------------------------


def piped(text: str | bytes, *args: object) -> Result:
    return CliRunner().invoke(cli, ["chat", "--model", str(BASE), "--max-new-tokens", "4", *map(str, args)], input=text)


def test_each_line_of_a_pipe_is_a_message_and_the_answers_alone_are_written(base: lc.Model) -> None:
    chat = Conversation(base, SHORT)
    want = [said(chat.ask("Hello")), said(chat.ask("Who slept?"))]
    result = piped("Hello\r\n\n\nWho slept?")
    assert result.exit_code == 0 and result.stdout == "".join(f"{text}\n" for text in want) and result.stderr == ""


def test_commands_of_a_pipe_speak_on_stderr_and_an_unknown_one_fails_at_the_end(base: lc.Model) -> None:
    first = base.generate([{"role": "user", "content": "Hello"}], SHORT)
    result = piped("Hello\n/reset\n/unknown\nHello\n/bye\nHello\n")
    assert result.exit_code == 1 and result.stdout == f"{first}\n{first}\n"
    assert "forgotten" in result.stderr and "lora-c: /unknown: expected a command" in result.stderr
    assert piped(b"\xff\n").exit_code == 1


def test_a_full_context_is_a_note_of_a_pipe_and_ends_nothing(base: lc.Model) -> None:
    result = piped("The mouse was fat. " * 60 + "\n" + "The mouse was fat. " * 60 + "\nHello\n")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 3
    assert "note      the context is full: the oldest turn was left out" in result.stderr


def test_the_adapter_of_the_flag_has_its_path(base: lc.Model, adapter: Path) -> None:
    result = piped("/adapter\n/adapter none\n/adapter\n", "--adapter", adapter)
    assert f"* default ({adapter})\n  none (the base alone)" in result.stderr
    assert "The base answers alone.\n  default" in result.stderr


def test_a_pipe_needs_no_prompt_toolkit_and_gets_no_codes() -> None:
    code = "import sys; sys.modules['prompt_toolkit'] = None; from lora_c.cli import main; main()"
    command = [sys.executable, "-c", code, "chat", "--model", str(BASE), "--max-new-tokens", "4"]
    done = subprocess.run(command, input="Hello\n/help\n", capture_output=True, text=True)
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr and "/retry" in done.stderr


# -- the lines that were typed before ---------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("prompt_toolkit")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/lora-c/chat_history"


def test_the_history_is_a_private_file_in_the_state_folder(state: Path) -> None:
    from lora_c.chat.history import PrivateHistory, open_history

    history = open_history()
    assert isinstance(history, PrivateHistory) and list(history.load_history_strings()) == []
    history.store_string("one\n둘")
    history.store_string("two")
    assert stat.S_IMODE(state.stat().st_mode) == 0o600 and stat.S_IMODE(state.parent.stat().st_mode) == 0o700
    state.chmod(0o644)
    history.store_string("three")
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    again = open_history()
    assert list(again.load_history_strings()) == ["three", "two", "one\n둘"] and history.failure is None


@pytest.mark.parametrize("kind", ["folder", "pipe", "parent", "full"])
def test_a_history_that_cannot_be_written_says_so_once(state: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_toolkit.history import FileHistory

    from lora_c.chat.history import PrivateHistory, open_history

    def full(self: object, text: str) -> None:
        raise OSError(28, "No space left on device")

    if kind == "parent":
        state.parent.parent.write_text("a file")
    else:
        state.parent.mkdir(parents=True)
    if kind == "full":
        monkeypatch.setattr(FileHistory, "store_string", full)
    if kind in ("folder", "pipe"):
        state.mkdir() if kind == "folder" else os.mkfifo(state)
    history = open_history()
    assert isinstance(history, PrivateHistory) and list(history.load_history_strings()) == []
    history.store_string("one")
    assert history.failure_to_tell() and history.failure_to_tell() is None
    history.store_string("another")


def test_without_a_home_or_with_dev_null_the_history_is_in_memory(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_toolkit.history import InMemoryHistory

    from lora_c.chat.history import history_path, open_history

    state.parent.mkdir(parents=True)
    state.symlink_to(os.devnull)
    assert isinstance(open_history(), InMemoryHistory)
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert history_path() == Path("/home/someone/.local/state/lora-c/chat_history")
    monkeypatch.setenv("HOME", "nowhere")
    assert isinstance(open_history(), InMemoryHistory)

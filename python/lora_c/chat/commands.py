"""The lines of a chat that begin with a slash, and which of the lines go to the model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from ..errors import AdapterError, ConfigError, LoraCError, SaveError, nearest
from .conversation import Conversation, Reply

# name: what follows it, and what it does
COMMANDS = {
    "/help": ("", "This list."),
    "/reset": ("", "Forget the conversation, but not the system message."),
    "/retry": ("", "Answer the last message again."),
    "/system": ("[TEXT]", "Set the system message, or show it; none: without one."),
    "/adapter": ("[NAME or PATH]", "Use or load an adapter, or show all; none: the base alone."),
    "/save": ("FILE", "Write the conversation as a .jsonl file for training."),
    "/bye": ("", "Leave, as Ctrl-D does."),
}
KEYS = {
    "//TEXT": "Send a text that begins with a slash.",
    "Esc-Enter": 'A new line; so is Enter behind a backslash or in """quotes""".',
    "Ctrl-C": "Cut the answer, which is dropped with its message.",
    "Ctrl-D": "Leave.",
}
_LEAVING = ("/bye", "/exit", "/quit")
NONE = "none"


@dataclass(frozen=True)
class Outcome:
    """What came of a line: something to say, an answer that begins, or the end."""

    said: str = ""
    reply: Reply | None = None
    leaves: bool = False


class Commands:
    """Carries out the lines that a person writes.

    Parameters
    ----------
    conversation : Conversation
    paths : dict, optional
        Where each adapter of the model was loaded from, by its name.
    """

    def __init__(self, conversation: Conversation, paths: dict[str, str] | None = None) -> None:
        self.conversation = conversation
        self.model = conversation.model
        self.paths = dict(paths or {})
        self._run: dict[str, Callable[[str], Outcome]] = {
            "/help": lambda text: Outcome(help_text()),
            "/reset": self._reset,
            "/retry": lambda text: Outcome(reply=self.conversation.ask_again()),
            "/system": self._system,
            "/adapter": self._adapter,
            "/save": self._save,
        }

    def run(self, line: str) -> Outcome:
        """Carry out a line.

        Raises
        ------
        LoraCError
            It cannot be done. Nothing has changed.
        """
        if not line.strip():
            return Outcome()
        if not line.startswith("/"):
            return Outcome(reply=self.conversation.ask(line))
        if line.startswith("//"):
            return Outcome(reply=self.conversation.ask(line[1:]))
        name, text = line.split()[0], line[len(line.split()[0]) :]
        if name in _LEAVING:
            return Outcome(leaves=True)
        if name not in self._run:
            raise ConfigError(
                f"{name}: expected a command (/help lists them){nearest(name, COMMANDS)}; the line was not sent: to send a "
                f"text that begins with a slash write two, /{name[:20]}"
            )
        return self._run[name](text.strip())

    def adapter_names(self) -> list[str]:
        """What `/adapter` takes besides a path."""
        return [*self.model.adapter_names, NONE]

    def _reset(self, text: str) -> Outcome:
        self.conversation.reset()
        return Outcome("The conversation is forgotten" + ("; the system message stays." if self.conversation.system else "."))

    def _system(self, text: str) -> Outcome:
        if not text:
            return Outcome(self.conversation.system or "There is no system message.")
        self.model.tokenizer.encode(text)  # refuses what is no text
        self.conversation.system = None if text == NONE else text
        return Outcome("There is no system message any more." if text == NONE else "The system message is set.")

    def _adapter(self, text: str) -> Outcome:
        if not text:
            return Outcome(self._list_adapters())
        if text not in self.adapter_names():
            self._load(text)
        else:
            self.model.set_adapter(None if text == NONE else text)
        active = self.model.active_adapter
        return Outcome("The base answers alone." if active is None else f"{self._label(active)} is in use.")

    def _load(self, text: str) -> None:
        path = os.path.expanduser(text)
        name = next((known for known, where in self.paths.items() if os.path.realpath(where) == os.path.realpath(path)), None)
        if name is None:
            short = Path(path).name
            name = path if short in (*self.adapter_names(), "") else short
            try:
                self.model.load_adapter(path, name=name, is_trainable=False)
            except LoraCError as error:
                if os.path.exists(path):
                    raise
                raise AdapterError(f"{error} (here are: {', '.join(self.adapter_names())})") from None
            self.paths[name] = path
        self.model.set_adapter(name)

    def _list_adapters(self) -> str:
        active = self.model.active_adapter
        lines = [f"{'*' if name == active else ' '} {self._label(name)}" for name in self.model.adapter_names]
        return "\n".join([*lines, f"{'*' if active is None else ' '} {NONE} (the base alone)"])

    def _label(self, name: str) -> str:
        path = self.paths.get(name)
        return name if path in (None, name) else f"{name} ({path})"

    def _save(self, text: str) -> Outcome:
        from ..files.atomic import write_text

        if not text:
            raise ConfigError("/save: expected the name of a file, got nothing; write /save FILE.jsonl")
        path = Path(os.path.expanduser(text))
        if path.suffix != ".jsonl":
            raise ConfigError(f"/save: expected a name that ends in .jsonl, got {text!r}; lora-c train reads it by that")
        if not self.conversation.turns:
            raise ConfigError("/save: expected a conversation with an answer, got none yet; write a message first")
        if os.path.lexists(path):
            raise SaveError(f"{text}: expected a free name, got one that is taken; choose another (nothing is overwritten)")
        record = {"messages": self.conversation.messages()}
        write_text(path, json.dumps(record, ensure_ascii=False) + "\n")
        return Outcome(f"The conversation is saved: {text}")


def help_text() -> str:
    """All commands and keys, wrapped to the width of the terminal."""
    width = max(30, min(shutil.get_terminal_size().columns, 80))
    formatter = click.HelpFormatter(width=width)
    rows = [(f"{name} {what}".strip(), text) for name, (what, text) in COMMANDS.items()]
    formatter.write_dl(rows + list(KEYS.items()), col_max=24 if width >= 60 else 10)
    return formatter.getvalue().rstrip()

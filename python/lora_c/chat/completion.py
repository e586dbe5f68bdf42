"""What Tab completes in a chat: commands, adapters, paths."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from .commands import COMMANDS, Commands


class CommandCompleter(Completer):
    """Completes a line that begins with a slash; in messages there is nothing to complete."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """As prompt_toolkit asks for them."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text.partition(" ")
        if not space:
            for known, (what, _) in COMMANDS.items():
                if known.startswith(name):
                    yield Completion(known + (" " if what else ""), -len(name), display=known)
        elif name in ("/adapter", "/save"):
            for adapter in self._commands.adapter_names() if name == "/adapter" else ():
                if adapter.startswith(rest):
                    yield Completion(adapter, -len(rest))
            yield from self._paths.get_completions(Document(rest), complete_event)

"""The lines that were typed before, in a file that only its owner reads. Whatever goes wrong with it ends no chat."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from ..errors import LoraCError
from ..files.os_errors import reason
from ..files.regular_file import check_regular


def open_history() -> History:
    """The history in the user's state folder; one in memory where there is none, or it leads to /dev/null."""
    path = history_path()
    if path is None or os.path.realpath(path) == os.devnull:
        return InMemoryHistory()
    return PrivateHistory(path)


def history_path() -> Path | None:
    """`$XDG_STATE_HOME/lora-c/chat_history`; None where there is no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # as the specification asks
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        state = os.path.join(home, ".local", "state")
    return Path(state) / "lora-c" / "chat_history"


class PrivateHistory(FileHistory):
    """prompt_toolkit's file, with permissions of its own.

    Attributes
    ----------
    failure : str or None
        Why lines are not kept; they are known until the end of the chat all the same.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path, self.failure = path, None if _absent(path) else _problem(path)
        self._told = False

    def failure_to_tell(self) -> str | None:
        """The failure, once."""
        if self.failure is None or self._told:
            return None
        self._told = True
        return self.failure

    def load_history_strings(self) -> Iterable[str]:
        """The lines, newest first."""
        if self.failure is not None or _absent(self.path):
            return []
        try:
            return list(super().load_history_strings())
        except (OSError, ValueError) as error:
            self.failure = reason(error)
            return []

    def store_string(self, string: str) -> None:
        """Add one entry."""
        if self.failure is not None:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
            if os.stat(self.path).st_mode & 0o077:
                os.chmod(self.path, 0o600)
            super().store_string(string)
        except (OSError, ValueError) as error:
            self.failure = reason(error)


def _absent(path: Path) -> bool:
    return not os.path.lexists(path)


def _problem(path: Path) -> str | None:
    """Why the file cannot be a history: a pipe would be waited for."""
    try:
        check_regular(path, LoraCError)
    except LoraCError as error:
        return str(error)
    return None

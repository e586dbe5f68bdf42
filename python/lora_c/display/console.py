"""Where tables and bars are printed: rich's console, but that a closed pipe is an error as everywhere else."""

from __future__ import annotations

from typing import Any

from rich.console import Console


class TextConsole(Console):
    """No colours for what looks like a number or a path, and no end of the program when nobody reads it any more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """rich would end the program here.

        Raises
        ------
        BrokenPipeError
            Always.
        """
        raise BrokenPipeError

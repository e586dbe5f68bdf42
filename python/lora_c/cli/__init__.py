"""The command line: ``lora-c train | generate | chat | eval | merge | export | quantize | bench | demo``.

Nothing is imported before `main` runs, so that Ctrl-C is one line while the libraries are loaded, too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Entry point of the ``lora-c`` script."""
    try:
        from .commands import run

        run()
    except KeyboardInterrupt:
        print("\nlora-c: stopped", file=sys.stderr)
        sys.exit(130)


def __getattr__(name: str) -> Any:
    if name != "cli":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .commands import cli

    return cli

"""On the command line a warning of this package is its one line, without the file and the code behind it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def plain_notices() -> Iterator[None]:
    """Print each warning of this package once, as ``note      ...``; others as Python prints them."""
    from ..display.printable import printable
    from ..notices import LoraCWarning

    with warnings.catch_warnings():
        warnings.simplefilter("once", LoraCWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, LoraCWarning):
                with suppress(OSError):  # a log that is full or gone ends no run
                    print(f"note      {printable(str(message))}", file=sys.stderr)
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield

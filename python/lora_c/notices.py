"""What is said in one line and ends nothing: sources that disagree, and parts that were left aside."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)


class LoraCWarning(UserWarning):
    """A decision that lora-c took where its sources disagree, or a part that it left aside; one line."""


def tell(message: str) -> None:
    """Warn with one line, attributed to the first caller outside this package (the command line prints the line alone)."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(LoraCWarning(" ".join(message.split())), stacklevel=depth)

"""Every call into the tokenizers library goes through here: whatever it throws becomes one line.

The library is written in Rust. What it refuses is a bare `Exception`; a panic in it (a regular expression that gives up, an
invariant that a file breaks) is a `PanicException`, which is no `Exception` at all and passes every usual `except`.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import LoraCError

_PACKAGE = str(Path(__file__).resolve().parents[1])


def _is_of_the_library(error: BaseException) -> bool:
    """Not what a handler of signals throws while a call of the library returns: its own frame is the last one then."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    here = frame is None or frame.tb_frame.f_code.co_filename.startswith(_PACKAGE)
    return here and (isinstance(error, Exception) or type(error).__name__ == "PanicException")


class library_errors:
    """Turn what the library throws into an error of this package.

    Parameters
    ----------
    kind : type
        The error to raise.
    expected : str
        "`<what>`: expected `<what>`": the beginning of its line.
    way_out : str
        Its end.
    """

    def __init__(self, kind: type[LoraCError], expected: str, way_out: str = "") -> None:
        self.kind, self.expected, self.way_out = kind, expected, way_out

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, (LoraCError, MemoryError)) or not _is_of_the_library(error):
            return
        end = f"; {self.way_out}" if self.way_out else ""
        raise self.kind(f"{self.expected}, got: {error or type(error).__name__}{end}") from None

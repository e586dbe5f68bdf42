"""Every call into the tokenizers library goes through here: whatever it throws becomes one line.

The library is written in Rust. What it refuses is a bare `Exception`; a panic in it (a regular expression that gives up, an
invariant that a file breaks) is a `PanicException`, which is no `Exception` at all and passes every usual `except`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import LoraCError


def _is_of_the_library(error: BaseException) -> bool:
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def library_errors(kind: type[LoraCError], expected: str, way_out: str = "") -> Iterator[None]:
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
    try:
        yield
    except (LoraCError, MemoryError):
        raise
    except BaseException as error:
        if not _is_of_the_library(error):
            raise
        end = f"; {way_out}" if way_out else ""
        raise kind(f"{expected}, got: {error or type(error).__name__}{end}") from None

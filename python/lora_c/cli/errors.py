"""Expected errors end as one line on stderr; everything else keeps its traceback, because it is a bug of ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def friendly_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except (ValueError, TypeError, NotImplementedError, MemoryError, OSError) as error:
        if not expected(error):
            raise
        print(f"lora-c: {describe(error)}", file=sys.stderr)
        sys.exit(1)


def expected(error: BaseException) -> bool:
    """Our own errors, those of the machine (no memory, no disk, no file), and what the environment asks for in vain."""
    from ..errors import LoraCError

    if isinstance(error, (LoraCError, OSError, MemoryError, NotImplementedError)):
        return True
    return isinstance(error, ValueError) and str(error).startswith("LORA_C_")  # a variable that is read at import


def describe(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        got = str(error) or "no memory left"
        if "expected" in got:
            return got
        return f"memory: expected enough, got: {got}; use a smaller batch, --recompute layer or a shorter --max-seq-length"
    if isinstance(error, OSError):
        from ..os_errors import describe as describe_os_error

        return describe_os_error(error)
    return str(error)

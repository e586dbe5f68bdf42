"""Files brought into memory ahead of whoever reads their mapping.

A mapped file that is not in the page cache is read where it is touched, a few pages at a time, while the cores wait. Here a
thread reads what comes next in large pieces, in the order of use. What is in memory already is left alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 8 << 20  # bytes of one read
WINDOW = 512 << 20  # bytes that may be read before they are used; a file may be larger than the memory


@dataclass(frozen=True)
class Extent:
    """Bytes start to end of a file."""

    path: Path
    start: int
    end: int


@contextmanager
def read_ahead(steps: Sequence[Sequence[Extent]]) -> Iterator[Callable[[int], None]]:
    """Read the extents of each step before the step comes; call what is yielded with the number of each step as it begins."""
    reader = _Reader(steps)
    thread = threading.Thread(target=reader.run, name="lora_c read ahead", daemon=True)
    thread.start()
    try:
        yield reader.reached
    finally:
        reader.stop()
        thread.join()


class _Reader:
    def __init__(self, steps: Sequence[Sequence[Extent]]) -> None:
        self._steps = steps
        self._changed = threading.Condition()
        self._step = 0
        self._stopped = False
        self._handles: dict[Path, int] = {}

    def reached(self, step: int) -> None:
        with self._changed:
            self._step = step
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        sizes = [extent.end - extent.start for extents in self._steps for extent in extents]
        buffer, probe = bytearray(min(CHUNK, max(sizes, default=0))), bytearray(1)
        ahead = [0] * len(self._steps)  # bytes read for each step
        try:
            for step, extents in enumerate(self._steps):
                for extent in extents:
                    for start in range(extent.start, extent.end, CHUNK):
                        if not self._wait(step, ahead):
                            return
                        self._read(extent.path, start, min(extent.end, start + CHUNK), buffer, probe)
                        ahead[step] += CHUNK
        except OSError:
            return  # whoever reads the mapping meets it, too
        finally:
            for handle in self._handles.values():
                os.close(handle)

    def _wait(self, step: int, ahead: list[int]) -> bool:
        """Until what is read and not used fits the window; False: nobody needs more."""
        with self._changed:
            while not self._stopped and step > self._step and sum(ahead[self._step + 1 : step + 1]) >= WINDOW:
                self._changed.wait()
            return not self._stopped

    def _read(self, path: Path, start: int, end: int, buffer: bytearray, probe: bytearray) -> None:
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDONLY)
        handle = self._handles[path]
        if hasattr(os, "preadv") and not all(_is_cached(handle, at, probe) for at in (start, (start + end) // 2, end - 1)):
            os.preadv(handle, [memoryview(buffer)[: end - start]], start)


def _is_cached(handle: int, at: int, probe: bytearray) -> bool:
    if not hasattr(os, "RWF_NOWAIT"):  # not Linux
        return False
    try:
        os.preadv(handle, [probe], at, os.RWF_NOWAIT)
    except OSError:  # not in memory, or a file system that cannot say
        return False
    return True

"""The adapters that are on the model, and the memory that they may take together."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import AdapterError
from .adapter_files import Fingerprint
from .engine import Engine, result_of
from .problems import too_busy

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter


@dataclass(eq=False)
class Loaded:
    """A version of an adapter that is on the model."""

    key: str  # its name there
    seen: Fingerprint
    bytes: int
    users: int = 0
    replaced: bool = False  # by a newer one, or unloaded: it leaves when its last answer has ended


@dataclass(eq=False)
class Served:
    """A name that requests may give."""

    folder: str
    loaded: Loaded | None = None
    gone: bool = False  # unloaded, or its name has another folder
    unreadable: Fingerprint | None = None  # a newer version that is not tried again
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)


class AdapterMemory:
    """Puts versions on the model, and takes those off that no answer has any more. Used in the server's loop alone.

    Parameters
    ----------
    most : int
        Bytes that they may take.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self.most = engine, most
        self._loaded: set[Loaded] = set()  # also those that are replaced and have answers under way
        self._versions = itertools.count()

    @property
    def bytes(self) -> int:
        """What those in memory take."""
        return sum(loaded.bytes for loaded in self._loaded)

    async def put(
        self, name: str, served: Served, adapter: Adapter, seen: Fingerprint, all_served: Iterable[Served]
    ) -> Loaded:
        """Put a version on the model, in the place of that of before.

        `all_served` are those that may leave for it, the least recently used first.

        Raises
        ------
        AdapterError
            It takes more than all may.
        ApiProblem
            The others are in use.
        """
        loaded = Loaded(f"{name}#{next(self._versions)}", seen, sum(p.data.nbytes for p in adapter.parameters()))
        self._make_room(loaded.bytes, served, all_served)
        self._loaded.add(loaded)
        try:
            await result_of(self._engine.add_adapter(loaded.key, adapter))
        except BaseException:
            self._loaded.discard(loaded)
            raise
        before, served.loaded, served.unreadable = served.loaded, loaded, None
        self.retire(before)
        self._engine.metrics.loads.inc()
        self._tell()
        return loaded

    def give_back(self, loaded: Loaded) -> None:
        """It has a user less."""
        loaded.users -= 1
        if loaded.replaced and not loaded.users:
            self._leave(loaded)

    def _make_room(self, needed: int, for_: Served, all_served: Iterable[Served]) -> None:
        """Let the least recently used ones leave that no answer has."""
        if needed > self.most:
            raise AdapterError(
                f"adapter: expected one that takes at most {self.most >> 20} MiB (--adapter-memory), got {needed >> 20}"
            )
        for served in all_served:
            if self.bytes + needed <= self.most:
                return
            if served is not for_ and served.loaded is not None and not served.loaded.users and not served.loading.locked():
                loaded, served.loaded = served.loaded, None
                self._engine.metrics.evictions.inc()
                self._leave(loaded)
        idle = for_.loaded.bytes if for_.loaded is not None and not for_.loaded.users else 0
        if self.bytes - idle + needed > self.most:
            raise too_busy(
                f"model: expected memory for one more adapter within --adapter-memory ({self.most >> 20} MiB), got other "
                "adapters that are all in use; try again later"
            )

    def retire(self, loaded: Loaded | None) -> None:
        """It is replaced, or unloaded: it leaves with its last user."""
        if loaded is None:
            return
        loaded.replaced = True
        if not loaded.users:
            self._leave(loaded)

    def _leave(self, loaded: Loaded) -> None:
        self._loaded.discard(loaded)
        self._engine.remove_adapter(loaded.key)
        self._tell()

    def _tell(self) -> None:
        self._engine.metrics.adapters.set(len(self._loaded))
        self._engine.metrics.adapter_bytes.set(self.bytes)

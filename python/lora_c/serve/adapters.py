"""Which adapters are served, and which of them are in memory."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LoraCError
from .adapter_files import Fingerprint, fingerprint, is_adapter, read_from
from .engine import Engine, result_of
from .problems import ApiProblem, too_busy

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter


@dataclass(eq=False)
class _Loaded:
    """A version of an adapter that is on the model."""

    key: str  # its name there
    seen: Fingerprint
    bytes: int
    users: int = 0
    replaced: bool = False  # by a newer one, or unloaded: it leaves when its last answer has ended


@dataclass(eq=False)
class _Served:
    """A name that requests may give."""

    folder: str
    loaded: _Loaded | None = None
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)


class Adapters:
    """The adapters below a folder, by name. Used in the server's loop alone.

    Parameters
    ----------
    folder : Path, optional
        Each folder in it is an adapter. Without one the base alone is served.
    memory : int
        Bytes that those in memory may take.
    """

    def __init__(self, engine: Engine, base: str, folder: Path | None, memory: int) -> None:
        self.base, self._engine, self._folder, self._memory = base, engine, folder, memory
        self._served: dict[str, _Served] = {}  # the least recently used first
        self._unloaded: set[str] = set()
        self._old: set[_Loaded] = set()  # replaced, with answers under way
        self._versions = itertools.count()

    def names(self) -> list[str]:
        """What requests may give as model: the base, and every adapter."""
        found = [name for name in self._folders() if name not in self._unloaded] + list(self._served)
        return [self.base, *sorted(dict.fromkeys(name for name in found if name != self.base))]

    @property
    def bytes(self) -> int:
        """What those in memory take."""
        return sum(loaded.bytes for loaded in self._all_loaded())

    @asynccontextmanager
    async def used(self, name: str | None) -> AsyncIterator[str | None]:
        """The adapter's name on the model while a block runs; None for the base. It is read where it is not, or was replaced.

        Raises
        ------
        ApiProblem
            There is none of that name, it cannot be read, or there is no memory for it now.
        """
        if name is None or name == self.base:
            yield None
            return
        served = self._find(name)
        async with served.loading:
            loaded = await self._current(name, served)
            loaded.users += 1
        try:
            yield loaded.key
        finally:
            loaded.users -= 1
            if loaded.replaced and not loaded.users:
                self._old.discard(loaded)
                self._leave(loaded)

    async def load(self, name: str, folder: str) -> None:
        """Serve a folder below that of the adapters under a name, and read it now.

        Raises
        ------
        ApiProblem
            There is no such folder, or it cannot be read.
        """
        if folder not in self._folders():
            raise ApiProblem(
                404, f"lora_path: expected the name of a folder below --adapters, got {folder[:80]!r}", "lora_path"
            )
        if name == self.base or not name.strip() or len(name) > 200:
            raise ApiProblem(400, f"lora_name: expected a name that the base has not, got {name[:80]!r}", "lora_name")
        before = self._served.get(name)
        served = before if before is not None and before.folder == folder else _Served(folder)
        async with served.loading:
            await self._current(name, served)
        if before is not None and before is not served:
            self._replace(before)
        self._served[name] = served
        self._unloaded.discard(name)

    def unload(self, name: str) -> None:
        """Serve a name no more; answers under way end as they began.

        Raises
        ------
        ApiProblem
            There is none.
        """
        self._find(name)
        self._replace(self._served.pop(name))
        if name in self._folders():
            self._unloaded.add(name)

    # -- names --------------------------------------------------------------------------------------------------------

    def _folders(self) -> list[str]:
        """Names of the folders; a name of a request is compared with these, and never opened as a path."""
        if self._folder is None:
            return []
        try:
            names = os.listdir(self._folder)
        except OSError:
            return []
        return sorted(name for name in names if not name.startswith(".") and is_adapter(self._folder / name))

    def _find(self, name: str) -> _Served:
        if name not in self._served:
            if name in self._unloaded or name not in self._folders():
                known = ", ".join(self.names()[:20])
                raise ApiProblem(404, f"model: expected one of {known}, got {name[:80]!r}", "model", "model_not_found")
            self._served[name] = _Served(name)
        return self._served[name]

    # -- memory -------------------------------------------------------------------------------------------------------

    async def _current(self, name: str, served: _Served) -> _Loaded:
        """The newest version; where it cannot be read any more, the one in memory stays in use."""
        assert self._folder is not None
        path = self._folder / served.folder
        seen = fingerprint(path)
        if served.loaded is None or (seen is not None and seen != served.loaded.seen):
            try:
                adapter, read = await asyncio.get_running_loop().run_in_executor(
                    None, read_from, path, self._engine.model, self._memory
                )
                await self._put(name, served, adapter, read)
            except LoraCError as error:
                if served.loaded is None:
                    raise ApiProblem(400, str(error), "model", "adapter_unreadable") from None
        assert served.loaded is not None
        if name in self._served:
            self._served[name] = self._served.pop(name)  # the most recently used
        return served.loaded

    async def _put(self, name: str, served: _Served, adapter: Adapter, seen: Fingerprint) -> None:
        loaded = _Loaded(f"{name}#{next(self._versions)}", seen, sum(p.data.nbytes for p in adapter.parameters()))
        self._make_room(loaded.bytes, served)
        before, served.loaded = served.loaded, loaded
        await result_of(self._engine.add_adapter(loaded.key, adapter))
        self._retire(before)
        self._engine.metrics.loads.inc()
        self._tell()

    def _make_room(self, needed: int, for_: _Served) -> None:
        """Let the least recently used ones leave that no answer has."""
        for served in list(self._served.values()):
            if self.bytes + needed <= self._memory:
                return
            if served is not for_ and served.loaded is not None and not served.loaded.users and not served.loading.locked():
                loaded, served.loaded = served.loaded, None
                self._engine.metrics.evictions.inc()
                self._leave(loaded)
        idle = for_.loaded.bytes if for_.loaded is not None and not for_.loaded.users else 0
        if self.bytes - idle + needed > self._memory:
            raise too_busy(
                f"model: expected memory for one more adapter within --adapter-memory ({self._memory >> 20} MiB), got other "
                "adapters that are all in use; try again later"
            )

    def _replace(self, served: _Served) -> None:
        loaded, served.loaded = served.loaded, None
        self._retire(loaded)
        self._tell()

    def _retire(self, loaded: _Loaded | None) -> None:
        if loaded is None:
            return
        loaded.replaced = True
        if loaded.users:
            self._old.add(loaded)
        else:
            self._leave(loaded)

    def _leave(self, loaded: _Loaded) -> None:
        self._engine.remove_adapter(loaded.key)
        self._tell()

    def _all_loaded(self) -> list[_Loaded]:
        return [served.loaded for served in self._served.values() if served.loaded is not None] + list(self._old)

    def _tell(self) -> None:
        found = self._all_loaded()
        self._engine.metrics.adapters.set(len(found))
        self._engine.metrics.adapter_bytes.set(sum(loaded.bytes for loaded in found))

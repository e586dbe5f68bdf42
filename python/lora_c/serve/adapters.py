"""Which adapters are served, and which of them are in memory."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AdapterError, LoraCError
from .adapter_files import Fingerprint, fingerprint, is_adapter, read_from
from .engine import Engine, result_of
from .problems import ApiProblem, too_busy

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter

_LOG = logging.getLogger("lora_c.serve")


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
    gone: bool = False  # unloaded, or its name has another folder
    unreadable: Fingerprint | None = None  # a newer version that is not tried again
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
        self._loaded: set[_Loaded] = set()  # all that take memory, also those that are replaced and have answers under way
        self._versions = itertools.count()

    def names(self) -> list[str]:
        """What requests may give as model: the base, and every adapter."""
        folders = self._folders()
        found = [name for name in folders if name not in self._unloaded]
        found += [name for name, served in self._served.items() if served.loaded is not None or served.folder in folders]
        return [self.base, *sorted(dict.fromkeys(name for name in found if name != self.base))]

    @property
    def bytes(self) -> int:
        """What those in memory take."""
        return sum(loaded.bytes for loaded in self._loaded)

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
        loaded = await self._taken(name, self._find(name))
        try:
            yield loaded.key
        finally:
            self._give_back(loaded)

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
            wanted = f"1 to 200 characters other than the base's name {self.base!r}"
            raise ApiProblem(400, f"lora_name: expected {wanted}, got {name[:80]!r}", "lora_name")
        before = self._served.get(name)
        served = before if before is not None and before.folder == folder else _Served(folder)
        loaded = await self._taken(name, served, must_be_newest=True)
        try:
            if served.gone:
                raise ApiProblem(
                    409, f"lora_name: expected {name[:80]!r} to stay meanwhile, got it unloaded; try again", "lora_name"
                )
            now = self._served.get(name)
            if now is not None and now is not served:
                self._replace(now)
            self._served[name] = served
            self._unloaded.discard(name)
        finally:
            self._give_back(loaded)

    def unload(self, name: str) -> None:
        """Serve a name no more; answers under way end as they began.

        Raises
        ------
        ApiProblem
            There is none.
        """
        if name == self.base or self._known(name) is None:
            raise self._unknown("lora_name", name, self.names()[1:])
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
        if (served := self._known(name)) is None:
            raise self._unknown("model", name, self.names())
        return served

    def _unknown(self, field: str, name: str, known: list[str]) -> ApiProblem:
        one_of = ", ".join(known[:20]) or "an adapter, of which there is none"
        return ApiProblem(404, f"{field}: expected one of {one_of}, got {name[:80]!r}", field, "model_not_found")

    def _known(self, name: str) -> _Served | None:
        served = self._served.get(name)
        if served is not None and (served.loaded is not None or served.loading.locked() or self._is_there(served.folder)):
            return served
        if served is not None or name in self._unloaded or name not in self._folders():
            return None
        self._served[name] = _Served(name)
        return self._served[name]

    def _is_there(self, folder: str) -> bool:
        return self._folder is not None and is_adapter(self._folder / folder)

    # -- versions -----------------------------------------------------------------------------------------------------

    async def _taken(self, name: str, served: _Served, must_be_newest: bool = False) -> _Loaded:
        """The newest version, with one user more. Reading it goes on where the client leaves: nothing stays half done."""
        task = asyncio.create_task(self._take(name, served, must_be_newest))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._not_wanted)
            raise

    async def _take(self, name: str, served: _Served, must_be_newest: bool) -> _Loaded:
        async with served.loading:
            loaded = await self._newest(name, served, must_be_newest)
            loaded.users += 1
            if served.gone:  # meanwhile
                served.loaded, loaded.replaced = None, True
        if name in self._served:
            self._served[name] = self._served.pop(name)  # the most recently used
        return loaded

    def _not_wanted(self, task: asyncio.Task[_Loaded]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._give_back(task.result())

    def _give_back(self, loaded: _Loaded) -> None:
        loaded.users -= 1
        if loaded.replaced and not loaded.users:
            self._leave(loaded)

    async def _newest(self, name: str, served: _Served, must_be_newest: bool) -> _Loaded:
        """The version on disk; where that cannot be read, the one in memory stays in use."""
        assert self._folder is not None
        path, loaded = self._folder / served.folder, served.loaded
        seen = fingerprint(path)
        if loaded is not None and not must_be_newest and seen in (None, loaded.seen, served.unreadable):
            return loaded
        if loaded is not None and seen == loaded.seen:
            return loaded
        try:
            read = partial(read_from, path, self._engine.model, self._memory)
            adapter, read_seen = await asyncio.get_running_loop().run_in_executor(None, read)
            return await self._put(name, served, adapter, read_seen)
        except LoraCError as error:
            if loaded is None or must_be_newest:
                raise ApiProblem(400, str(error), "model", "adapter_unreadable") from None
            served.unreadable = seen
            _LOG.warning("adapter %r: the version of before stays in use: %s", name, error)
            return loaded

    async def _put(self, name: str, served: _Served, adapter: Adapter, seen: Fingerprint) -> _Loaded:
        loaded = _Loaded(f"{name}#{next(self._versions)}", seen, sum(p.data.nbytes for p in adapter.parameters()))
        self._make_room(loaded.bytes, served)
        self._loaded.add(loaded)
        try:
            await result_of(self._engine.add_adapter(loaded.key, adapter))
        except BaseException:
            self._loaded.discard(loaded)
            raise
        before, served.loaded, served.unreadable = served.loaded, loaded, None
        self._retire(before)
        self._engine.metrics.loads.inc()
        self._tell()
        return loaded

    # -- memory -------------------------------------------------------------------------------------------------------

    def _make_room(self, needed: int, for_: _Served) -> None:
        """Let the least recently used ones leave that no answer has."""
        if needed > self._memory:
            raise AdapterError(
                f"adapter: expected one that takes at most {self._memory >> 20} MiB (--adapter-memory), got {needed >> 20}"
            )
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
        loaded, served.loaded, served.gone = served.loaded, None, True
        self._retire(loaded)

    def _retire(self, loaded: _Loaded | None) -> None:
        if loaded is None:
            return
        loaded.replaced = True
        if not loaded.users:
            self._leave(loaded)

    def _leave(self, loaded: _Loaded) -> None:
        self._loaded.discard(loaded)
        self._engine.remove_adapter(loaded.key)
        self._tell()

    def _tell(self) -> None:
        self._engine.metrics.adapters.set(len(self._loaded))
        self._engine.metrics.adapter_bytes.set(self.bytes)

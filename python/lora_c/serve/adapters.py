"""Which adapters are served, and which of them are in memory."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from ..checkpoints.written import ADAPTER_CONFIG, ADAPTER_FILE
from ..errors import LoraCError
from .adapter_files import fingerprint, is_adapter, read_from
from .adapter_memory import AdapterMemory, Loaded, Served
from .engine import Engine
from .problems import ApiProblem

_LOG = logging.getLogger("lora_c.serve")


def _is_name(name: str) -> bool:
    """Whether JSON, a line of the log and a label can have it: no control characters, no bytes that are no UTF-8."""
    return name.isprintable() and bool(name.strip())


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
        self.base, self._engine, self._folder = base, engine, folder
        self._served: dict[str, Served] = {}  # the least recently used first
        self._unloaded: set[str] = set()
        self._left_out: set[str] = set()  # folders that were said to be
        self.memory = AdapterMemory(engine, memory)
        # few threads, for each keeps memory of its own of what it has read; two, so that a slow folder holds up no other
        self._files = ThreadPoolExecutor(2, "lora-c adapters")

    def names(self) -> list[str]:
        """What requests may give as model: the base, and every adapter."""
        folders = self._folders()
        found = [name for name in folders if name not in self._unloaded]
        found += [name for name, served in self._served.items() if served.loaded is not None or served.folder in folders]
        return [self.base, *sorted(dict.fromkeys(name for name in found if name != self.base))]

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
            self.memory.give_back(loaded)

    async def load(self, name: str, folder: str) -> None:
        """Serve a folder below that of the adapters under a name, and read it now.

        Raises
        ------
        ApiProblem
            There is no such folder, or it cannot be read.
        """
        if folder not in self._folders():
            files = f", which has {ADAPTER_CONFIG} and {ADAPTER_FILE}"
            raise ApiProblem(
                404, f"lora_path: expected the name of a folder below --adapters{files}, got {folder[:80]!r}", "lora_path"
            )
        if name == self.base or not _is_name(name) or len(name) > 200:
            wanted = f"1 to 200 printable characters other than the base's name {self.base!r}"
            raise ApiProblem(400, f"lora_name: expected {wanted}, got {name[:80]!r}", "lora_name")
        before = self._served.get(name)
        served = before if before is not None and before.folder == folder else Served(folder)
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
            self.memory.give_back(loaded)

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
        found = sorted(name for name in names if not name.startswith(".") and is_adapter(self._folder / name))
        for name in (name for name in found if not _is_name(name) and name not in self._left_out):
            self._left_out.add(name)
            _LOG.warning("adapters  %s left out: expected a name of printable characters", ascii(name))
        return [name for name in found if _is_name(name)]

    def _find(self, name: str) -> Served:
        if (served := self._known(name)) is None:
            raise self._unknown("model", name, self.names())
        return served

    def _unknown(self, field: str, name: str, known: list[str]) -> ApiProblem:
        one_of = ", ".join(known[:20]) or "an adapter, of which there is none"
        return ApiProblem(404, f"{field}: expected one of {one_of}, got {name[:80]!r}", field, "model_not_found")

    def _known(self, name: str) -> Served | None:
        served = self._served.get(name)
        if served is not None and (served.loaded is not None or served.loading.locked() or self._is_there(served.folder)):
            return served
        if served is not None or name in self._unloaded or name not in self._folders():
            return None
        self._served[name] = Served(name)
        return self._served[name]

    def _is_there(self, folder: str) -> bool:
        return self._folder is not None and is_adapter(self._folder / folder)

    # -- versions -----------------------------------------------------------------------------------------------------

    async def _taken(self, name: str, served: Served, must_be_newest: bool = False) -> Loaded:
        """The newest version, with one user more. Reading it goes on where the client leaves: nothing stays half done."""
        task = asyncio.create_task(self._take(name, served, must_be_newest))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._not_wanted)
            raise

    async def _take(self, name: str, served: Served, must_be_newest: bool) -> Loaded:
        async with served.loading:
            loaded = await self._newest(name, served, must_be_newest)
            loaded.users += 1
            if served.gone:  # meanwhile
                served.loaded, loaded.replaced = None, True
        if name in self._served:
            self._served[name] = self._served.pop(name)  # the most recently used
        return loaded

    def _not_wanted(self, task: asyncio.Task[Loaded]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.memory.give_back(task.result())

    async def _newest(self, name: str, served: Served, must_be_newest: bool) -> Loaded:
        """The version on disk; where that cannot be read, the one in memory stays in use."""
        assert self._folder is not None
        path, loaded = self._folder / served.folder, served.loaded
        seen = fingerprint(path)
        if loaded is not None and not must_be_newest and seen in (None, loaded.seen, served.unreadable):
            return loaded
        if loaded is not None and seen == loaded.seen:
            return loaded
        try:
            read = partial(read_from, path, self._engine.model, self.memory.most)
            adapter, read_seen = await asyncio.get_running_loop().run_in_executor(self._files, read)
            return await self.memory.put(name, served, adapter, read_seen, self._served.values())
        except LoraCError as error:
            if loaded is None or must_be_newest:
                raise ApiProblem(400, str(error), "model", "adapter_unreadable") from None
            served.unreadable = seen
            _LOG.warning("adapter %r: the version of before stays in use: %s", name, error)
            return loaded

    def _replace(self, served: Served) -> None:
        loaded, served.loaded, served.gone = served.loaded, None, True
        self.memory.retire(loaded)

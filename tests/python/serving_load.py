"""Many clients of one server at a time, some of whom leave, while its adapters are replaced on disk."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from serving import HELLO, Server

_SYSTEM = {"role": "system", "content": "There was a young goat. " * 40}
# What is asked: short, behind a long beginning that all share, drawn, of several answers.
CASES: list[dict[str, Any]] = [
    {"messages": HELLO, "temperature": 0, "max_tokens": 12},
    {"messages": [_SYSTEM, {"role": "user", "content": "What is red?"}], "temperature": 0, "max_tokens": 8},
    {"messages": [_SYSTEM, {"role": "user", "content": "Who is old?"}], "temperature": 1.1, "seed": 3, "max_tokens": 8},
    {"messages": [{"role": "user", "content": "Tell me of the wolf. " * 12}], "temperature": 0, "max_tokens": 40},
    {"messages": HELLO, "temperature": 0.8, "top_p": 0.9, "seed": 11, "n": 2, "max_tokens": 16},
]


@dataclass
class Said:
    """What one request was told. versions: those that its adapter had between its begin and its end."""

    name: str
    case: int
    versions: set[int]
    texts: list[str]


class Versions:
    """Folders of adapters, each of which is one of two versions; another one comes by a rename.

    Parameters
    ----------
    folder : Path
        What is served.
    sources : dict
        By name, the folders of the two versions.
    """

    def __init__(self, folder: Path, sources: dict[str, list[Path]]) -> None:
        self.folder, self.sources, self.n = folder, sources, 0
        self._past: dict[str, list[tuple[float, float, int]]] = {}  # begin and end of a rename, and what came with it
        folder.mkdir()
        for name in sources:
            self.replace(name, 0)

    def replace(self, name: str, version: int) -> None:
        """A link to a new copy takes the place of the one before in one step."""
        self.n += 1
        copy = self.folder.parent / f"copy{self.n}"
        shutil.copytree(self.sources[name][version], copy)
        link = self.folder.parent / "link"
        link.symlink_to(copy)
        old = (self.folder / name).resolve() if name in self._past else None
        begin = time.monotonic()
        link.rename(self.folder / name)
        self._past.setdefault(name, []).append((begin, time.monotonic(), version))
        if old is not None:
            shutil.rmtree(old)

    def between(self, name: str, begin: float, end: float) -> set[int]:
        """The versions that an adapter had at some time between two."""
        past = self._past[name]
        last = max(i for i, (_, done, _) in enumerate(past) if done <= begin)
        return {version for started, _, version in past[last:] if started <= end}

    def now(self, name: str) -> int:
        return self._past[name][-1][2]


@dataclass
class Load:
    """Clients of a server.

    Attributes
    ----------
    statuses : dict
        How often each status was told; 0: the client has left.
    memory : list of int
        The server's resident bytes every half second.
    """

    server: Server
    versions: Versions
    seconds: float
    n_clients: int = 64
    said: list[Said] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._end = time.monotonic() + self.seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.n_clients)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=60, limits=limits) as client:
            await asyncio.gather(self._swaps(), self._watches(), *(self._asks(client, seed) for seed in range(self.n_clients)))

    async def _swaps(self) -> None:
        rng = random.Random(0)
        while time.monotonic() < self._end:
            name = rng.choice(sorted(self.versions.sources))
            await asyncio.to_thread(self.versions.replace, name, 1 - self.versions.now(name))
            await asyncio.sleep(rng.uniform(0.1, 0.5))

    async def _watches(self) -> None:
        while time.monotonic() < self._end:
            self.memory.append(resident_bytes(self.server))
            await asyncio.sleep(0.5)

    async def _asks(self, client: httpx.AsyncClient, seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self._end:
            name, case, streams = rng.choice(sorted(self.versions.sources)), rng.randrange(len(CASES)), rng.random() < 0.5
            leaves = rng.uniform(0, 0.5) if rng.random() < 0.2 else None
            begin = time.monotonic()
            try:
                status, texts = await asyncio.wait_for(
                    _answer(client, CASES[case] | {"model": name, "stream": streams}), leaves
                )
            except asyncio.TimeoutError:
                status, texts = 0, []
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                versions = self.versions.between(name, begin, time.monotonic())
                self.said.append(Said(name, case, versions, texts))
            elif status == 429:
                await asyncio.sleep(rng.uniform(0.05, 0.3))


async def _answer(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, list[str]]:
    """The status, and the texts of the answers."""
    texts = [""] * body.get("n", 1)
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if not body["stream"] or response.status_code != 200:
            found = json.loads(await response.aread())
            choices = found.get("choices", ())
            return response.status_code, [choice["message"]["content"] for choice in choices]
        done = False
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line:
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content") or ""
        assert done, "a stream without an end"
        return 200, texts


def resident_bytes(server: Server) -> int:
    """What of the process is in memory."""
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def open_files(server: Server) -> int:
    """Descriptors of the process."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

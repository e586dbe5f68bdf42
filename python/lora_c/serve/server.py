"""The server from its beginning to its end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ..errors import ConfigError
from ..files.regular_file import read_regular
from ..files.system import STOPPING
from .adapters import Adapters
from .answering import Service
from .app import make_app
from .engine import Engine
from .listening import address_of, no_address
from .metrics import Metrics
from .protocol import LimitedProtocol

if TYPE_CHECKING:
    from ..configs.serving import ServeConfig
    from ..model.model import Model

KEY_VARIABLE = "LORA_C_API_KEY"
_MOST_KEYS_FILE = 1 << 20
_LAST_SECONDS = 10  # after the drain: what does not end by then is a fault, and is cancelled with a traceback
_TO_TAKE = 1.0  # seconds that a client has to take the word that its answer is broken off
_BACKLOG = 1024  # connections that the system keeps until they are accepted
_LOG = logging.getLogger("lora_c.serve")


def serve(
    model: Model, adapters: Path | None, config: ServeConfig, door: socket.socket, keys: Sequence[str],
    told: Callable[[str, Service], None],
) -> None:  # fmt: skip
    """Answer requests until a signal ends it.

    Parameters
    ----------
    adapters : Path, optional
        Each folder in it is an adapter.
    door : socket
        From `listening.bound`.
    keys : sequence of str
        From `keys_of`.
    told : callable
        Is given the address when the server listens.

    Raises
    ------
    ConfigError
        Another server listens there since, or there is no memory for the cache.
    NotImplementedError
        The device lacks the precision.
    """
    try:
        door.listen(_BACKLOG)
    except OSError as error:
        raise no_address(config, error) from None
    if config.precision is not None:
        model.decoder.precision = config.precision  # of embeddings; answers have it in their configuration
    metrics = Metrics()
    engine = Engine(model, config.max_num_seqs, config.max_queue, config.max_seq_length, config.prompt_block, metrics)
    name = config.served_model_name or Path(model.source).resolve().name
    service = Service(model, engine, Adapters(engine, name, adapters, config.adapter_memory << 20), config, metrics)
    model.adapter_set.activate(None)
    engine.start()
    protocol = type("Protocol", (LimitedProtocol,), {
        "read_timeout": config.read_timeout, "max_connections": config.max_connections,
    })  # fmt: skip
    server = _Server(service, uvicorn.Config(
        make_app(service, keys), http=protocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=30, timeout_graceful_shutdown=math.ceil(config.drain_timeout) + _LAST_SECONDS,
        proxy_headers=False, backlog=_BACKLOG,
    ))  # fmt: skip
    server.when_started = partial(told, address_of(door), service)
    try:
        server.run([door])
    finally:
        engine.stop()


def keys_of(config: ServeConfig) -> list[str]:
    """The keys of the file, or the one in the environment; none: everybody may ask.

    Raises
    ------
    ConfigError
        The file holds none, or one has characters that no header has.
    """
    if config.api_key_file is None:
        keys = [os.environ[KEY_VARIABLE]] if os.environ.get(KEY_VARIABLE) else []
    else:
        text = read_regular(config.api_key_file, ConfigError, _MOST_KEYS_FILE).decode("utf-8", "replace")
        keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"api_key_file: expected keys in {config.api_key_file!r}, one a line, got none")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ConfigError("api_key: expected keys of letters, digits and signs without spaces, got others")
    return keys


class _Server(uvicorn.Server):
    """uvicorn's server; a signal ends it when what is under way is answered, a second one at once.

    uvicorn itself cancels what takes longer than the drain: a traceback for each, and no word to its client. So answers are
    broken off before, and connections whose clients do not take that are cut: every handler ends as if its client had left.
    """

    when_started: Callable[[], None]
    _at_once = False

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        breaking = asyncio.create_task(self._break_off())
        try:
            await super().shutdown(sockets)
        finally:
            breaking.cancel()

    async def _break_off(self) -> None:
        """When the drain is over, or with the second signal."""
        end = time.monotonic() + self._service.config.drain_timeout
        while not self._at_once and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if n := self._service.break_off():
            _LOG.info("broken off, not answered by the end: %d request%s", n, "" if n == 1 else "s")
        await asyncio.sleep(_TO_TAKE)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._at_once = self.should_exit
        self.should_exit = self._service.draining = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        draining = [number for number in STOPPING if number.name != "SIGHUP"]  # a terminal that goes ends it at once
        before = {number: signal.signal(number, self.handle_exit) for number in draining}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def log_to_stderr() -> None:
    """Faults of the server, one line of time before each, and nothing of what is asked."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("lora_c.serve", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(level)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # warns of every piece that is written to a client that has left

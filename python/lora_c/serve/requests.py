"""The body of a request within its limits, and what ends an answer before its time: a client that leaves, the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from .problems import ApiProblem

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

T = TypeVar("T")


async def body_of(request: Request, most_bytes: int, seconds: float) -> bytes:
    """Read the body.

    Raises
    ------
    ApiProblem
        It is too large, or did not come in time.
    ClientLeft
        Before all of it came.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 18 or int(declared) > most_bytes:
        raise _too_large(most_bytes)
    pieces: list[bytes] = []

    async def read() -> None:
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > most_bytes:
                raise _too_large(most_bytes)
            pieces.append(piece)

    try:
        await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        raise ApiProblem(408, f"body: expected all of it within {seconds:g} seconds, got a part", headers=_CLOSE) from None
    except ClientDisconnect:
        raise ClientLeft from None
    return b"".join(pieces)


_CLOSE = {"Connection": "close"}


def _too_large(most: int) -> ApiProblem:
    return ApiProblem(413, f"body: expected at most {most:,} bytes, got more", headers=_CLOSE)


class ClientLeft(Exception):
    """Nobody reads the answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, whose request is read, as long as the client is there.

    Raises
    ------
    ClientLeft
        It is not.
    """

    async def leaving() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for one in (task, watch):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Server-sent events.

    Parameters
    ----------
    source : async generator
        What the events are made of; it is closed with the response.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], source: AsyncGenerator[str, None]) -> None:
        super().__init__()
        self._events, self._source = events, source
        del self.headers["content-length"]
        self.headers["Cache-Control"] = "no-store"
        self.headers["X-Accel-Buffering"] = "no"  # of nginx

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source):  # also where the client has left before the events have begun
            with suppress(ClientLeft, OSError):
                await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                data = f"data: {event}\n\n".encode()
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

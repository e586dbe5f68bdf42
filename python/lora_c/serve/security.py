"""Who may ask, and from where: the checks in front of every request.

A page of another site can send requests to a server on this machine; so names in Host that this machine has not (one that was
rebound to 127.0.0.1) and Origins of other pages are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from .problems import ApiProblem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = ("/", "/page.js", "/page.css", "/health")  # without a key: they say nothing of models and users
_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses what may not ask; adds the headers of CORS for pages that may.

    Parameters
    ----------
    keys : sequence of str
        Of which a request must have one; none: everybody may ask.
    hosts : iterable of str
        Names that Host may have beside localhost, the name of this machine and plain addresses.
    origins : iterable of str
        Of pages that may ask; "*": all.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], hosts: Iterable[str], origins: Iterable[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}
        self._origins = {origin.rstrip("/").lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin is not None and self._is_allowed(origin) else None
        try:
            self._check(scope, headers, origin, allowed is not None)
        except ApiProblem as problem:
            await problem.response()(scope, receive, _with_cors(send, allowed))
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(allowed)(scope, receive, send)
            return
        await self._app(scope, receive, _with_cors(send, allowed))

    def _check(self, scope: Scope, headers: Headers, origin: str | None, allowed: bool) -> None:
        hosts = headers.getlist("host")
        if len(hosts) > 1 or (hosts and not self._is_ours(hosts[0])) or (not hosts and scope["http_version"] != "1.0"):
            got = ", ".join(hosts)[:80] or "none"
            raise ApiProblem(403, f"Host: expected a name of this server, got {got}; --allowed-hosts adds one")
        if scope["method"] not in _SAFE and origin is not None and not allowed and not _is_same(origin, hosts):
            raise ApiProblem(403, f"Origin: expected a page of this server, got {origin[:80]}; --cors allows another")
        if self._keys and scope["path"] not in _OPEN and scope["method"] != "OPTIONS":
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, given: str) -> None:
        kind, _, key = given.partition(" ")
        found = False
        for known in self._keys:  # all of them, each in constant time: how long it takes says nothing
            found |= hmac.compare_digest(known, key.strip().encode("utf-8", "surrogateescape"))
        if not found or kind.lower() != "bearer":
            raise ApiProblem(
                401, "Authorization: expected Bearer with a key of this server, got none or another", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        return name in self._hosts or _is_address(name)

    def _is_allowed(self, origin: str) -> bool:
        return "*" in self._origins or origin.lower() in self._origins


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_address(name: str) -> bool:
    """Whether it is no name at all: what nobody can make lead elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same(origin: str, hosts: Sequence[str]) -> bool:
    return bool(hosts) and origin.lower() in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}")


def _preflight(allowed: str | None) -> Response:
    if allowed is None:
        return ApiProblem(403, "Origin: expected a page of this server, got another; --cors allows one").response()
    return Response(status_code=204, headers={
        "Access-Control-Allow-Origin": allowed, "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, *", "Access-Control-Max-Age": "600", "Vary": "Origin",
    })  # fmt: skip


def _with_cors(send: Send, allowed: str | None) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            if allowed is not None:
                headers["Access-Control-Allow-Origin"], headers["Vary"] = allowed, "Origin"
        await send(message)

    return sending

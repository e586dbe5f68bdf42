"""Which address leads to which handler."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import others
from .answering import Service, problem_of
from .chat import chat
from .completions import completions
from .problems import ApiProblem
from .requests import ClientLeft
from .security import Guard

Handler = Callable[[Request, Service], Awaitable[Response]]
_LOG = logging.getLogger("lora_c.serve")
_POST: dict[str, Handler] = {
    "/v1/chat/completions": chat, "/v1/completions": completions, "/v1/embeddings": others.embeddings,
    "/v1/load_lora_adapter": others.load_adapter, "/v1/unload_lora_adapter": others.unload_adapter,
    "/tokenize": others.tokenize, "/detokenize": others.detokenize,
}  # fmt: skip
_GET: dict[str, Handler] = {
    "/v1/models": others.models, "/v1/models/{name:path}": others.one_model, "/health": others.health,
    "/metrics": others.metrics,
}  # fmt: skip
_PAGE = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; frame-ancestors 'none'"


def make_app(service: Service, keys: Sequence[str]) -> ASGIApp:
    """The application: routes behind the guard."""
    routes = [Route(path, _answered(handler, path, service), methods=["POST"]) for path, handler in _POST.items()]
    routes += [Route(path, _answered(handler, path, service), methods=["GET"]) for path, handler in _GET.items()]
    routes += [Route(path, _file(name, kind), methods=["GET"]) for path, (name, kind) in _PAGE.items()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_found})
    app.router.redirect_slashes = False
    hosts = [service.config.host, *service.config.allowed_hosts]
    return Guard(app, keys, hosts, service.config.cors)


def _answered(handler: Handler, path: str, service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        response = await _safely(handler, request, service)
        service.metrics.requests.labels(path, response.status_code).inc()
        return response

    return endpoint


async def _safely(handler: Handler, request: Request, service: Service) -> Response:
    try:
        return await handler(request, service)
    except ApiProblem as problem:
        return problem.response()
    except ClientLeft:
        return Response(status_code=499)
    except Exception as error:
        told = problem_of(error)
        if told.status == 500:
            _LOG.exception("%s", request.url.path)
        return told.response()


async def _not_found(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = error.headers if isinstance(error, HTTPException) else None
    if status == 405:
        return ApiProblem(
            405, f"method: expected another one for this address, got {request.method[:20]}", headers=headers
        ).response()
    return ApiProblem(status, "address: expected one of docs/SERVE.md, got another", headers=headers).response()


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (files(__package__) / "page" / name).read_bytes()
    headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind, headers=headers)

    return endpoint

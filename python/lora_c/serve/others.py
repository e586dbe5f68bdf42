"""The smaller requests: models, embeddings, tokens, adapters, health, metrics."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..text.prompts import message_ids, prompt_ids
from .answering import Service
from .chat import messages_of
from .completions import prompts_of
from .engine import result_of
from .problems import ApiProblem
from .requests import while_connected
from .schema import DetokenizeBody, EmbeddingBody, LoadBody, TokenizeBody, UnloadBody

_MOST_INPUTS = 256


async def models(request: Request, service: Service) -> Response:
    """The base and the adapters."""
    found = [_model(service, name) for name in service.adapters.names()]
    return JSONResponse({"object": "list", "data": found})


async def one_model(request: Request, service: Service) -> Response:
    """One of them."""
    name = request.path_params["name"]
    if name not in service.adapters.names():
        raise ApiProblem(404, f"model: expected one of /v1/models, got {name[:80]!r}", "model", "model_not_found")
    return JSONResponse(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    parent = None if name == service.name else service.name
    return {
        "id": name, "object": "model", "created": service.created, "owned_by": "lora-c", "root": name, "parent": parent,
        "max_model_len": service.engine.max_tokens,
    }  # fmt: skip


async def embeddings(request: Request, service: Service) -> Response:
    """The mean of a text's last hidden states, of length 1. Each text is read alone, so that its vector is its own."""
    body = await service.read(request, EmbeddingBody)
    width = int(service.model.decoder.config["hidden_size"])
    if body.dimensions not in (None, width):
        raise ApiProblem(400, f"dimensions: expected {width}, which this model has, got {body.dimensions}", "dimensions")
    texts = prompts_of(body.input)
    if not 1 <= len(texts) <= _MOST_INPUTS:
        raise ApiProblem(400, f"input: expected 1 to {_MOST_INPUTS} texts, got {len(texts)}", "input")
    limit = service.limit(None)
    all_ids = await service.in_text_thread(lambda: [prompt_ids(service.model, text, 0, limit) for text in texts], "input")

    async def work() -> list[Any]:
        async with service.used(body.model, 1) as adapter:
            try:
                return await asyncio.wait_for(_vectors(service, all_ids, adapter), service.config.request_timeout)
            except asyncio.TimeoutError:
                raise service.too_late() from None

    vectors = await while_connected(request.receive, work())
    n = sum(map(len, all_ids))
    service.metrics.prompt_tokens.inc(n)
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format == "base64")}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": n, "total_tokens": n}
    return JSONResponse({"object": "list", "data": data, "model": body.model or service.name, "usage": usage})


async def _vectors(service: Service, all_ids: list[list[int]], adapter: str | None) -> list[Any]:
    model, adapters = service.model, service.model.adapter_set

    def vector(ids: list[int]) -> Any:
        before = adapters.active_name
        adapters.activate(adapter)
        try:
            return model.embed(ids, normalize=True)
        finally:
            adapters.activate(before)

    return [await result_of(service.engine.between_steps(partial(vector, ids))) for ids in all_ids]


def _written(vector: Any, as_base64: bool) -> Any:
    values = np.asarray(vector, np.float32)
    return base64.b64encode(values.astype("<f4").tobytes()).decode() if as_base64 else values.tolist()


async def tokenize(request: Request, service: Service) -> Response:
    """The tokens of a text or a conversation."""
    body = await service.read(request, TokenizeBody)
    tokenizer = service.model.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise ApiProblem(400, "prompt: expected one of prompt and messages, got both or none", "prompt")

    def work() -> tuple[list[int], list[str] | None]:
        if body.messages is not None:
            ids = message_ids(service.model, messages_of(body.messages), body.tools)
        else:
            ids = tokenizer.encode(body.prompt or "", body.add_special_tokens)
        return ids, [service.token_texts.text_of(i) for i in ids] if body.return_token_strs else None

    ids, strings = await service.in_text_thread(work)
    found = {"count": len(ids), "max_model_len": service.engine.max_tokens, "tokens": ids, "token_strs": strings}
    return JSONResponse(found)


async def detokenize(request: Request, service: Service) -> Response:
    """The text of tokens."""
    body = await service.read(request, DetokenizeBody)
    vocab = int(service.model.decoder.config["vocab_size"])
    wrong = next((i for i in body.tokens if not 0 <= i < vocab), None)
    if wrong is not None:
        raise ApiProblem(400, f"tokens: expected token ids from 0 to {vocab - 1}, got {wrong}", "tokens")
    text = await service.in_text_thread(lambda: service.model.tokenizer.decode(body.tokens, False))
    return JSONResponse({"prompt": text})


async def load_adapter(request: Request, service: Service) -> Response:
    """Serve a folder below --adapters under a name, and read it now."""
    body = await service.read(request, LoadBody)
    await service.adapters.load(body.lora_name, body.lora_path)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(request: Request, service: Service) -> Response:
    """Serve a name no more."""
    body = await service.read(request, UnloadBody)
    service.adapters.unload(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def health(request: Request, service: Service) -> Response:
    """Whether the server answers."""
    if service.draining or not service.engine.alive:
        return JSONResponse({"status": "ending" if service.draining else "broken"}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request, service: Service) -> Response:
    """Counts, as Prometheus reads them."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

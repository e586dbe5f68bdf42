"""/v1/completions"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..generation.token_logprobs import TokenLogprob
from ..text.prompts import prompt_ids
from .answering import Service
from .orders import Order, Progress
from .problems import ApiProblem
from .schema import CompletionBody
from .streaming import streamed, usage_of

_DEFAULT_TOKENS = 16  # OpenAI's
_MOST_PROMPTS = 128


async def completions(request: Request, service: Service) -> Response:
    """Go on with texts."""
    body = await service.read(request, CompletionBody)
    prompts = prompts_of(body.prompt)
    if len(prompts) > _MOST_PROMPTS:
        raise ApiProblem(400, f"prompt: expected at most {_MOST_PROMPTS} texts, got {len(prompts)}", "prompt")
    ids = await service.in_text_thread(lambda: [prompt_ids(service.model, text, limit=2**31) for text in prompts], "prompt")
    decode = service.model.tokenizer.decode
    texts = [p if isinstance(p, str) else await service.in_text_thread(partial(decode, p)) for p in prompts if body.echo]
    answer = CompletionAnswer(service, body, ids, texts)
    if body.stream:
        return await streamed(request, answer.chunks())
    return JSONResponse(await answer.whole(request))


def prompts_of(given: Any) -> list[str | list[int]]:
    """One text or several, each as text or as token ids."""
    if isinstance(given, str):
        return [given]
    return [list(given)] if given and isinstance(given[0], int) else list(given)


@dataclass
class _Choice:
    """One of the answers, while it comes."""

    text: str
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    n_tokens: int = 0


class CompletionAnswer:
    """The answers to some prompts, whole or in chunks."""

    def __init__(self, service: Service, body: CompletionBody, ids: list[list[int]], texts: list[str]) -> None:
        if body.echo and body.logprobs is not None:
            raise ApiProblem(400, "echo: expected no logprobs with it, got some; ask for one of them", "echo")
        if not ids:
            raise ApiProblem(400, "prompt: expected a text, got none", "prompt")
        self._service, self._body, self._ids = service, body, ids
        self._id, self._created, self._n = f"cmpl-{uuid4().hex}", int(time.time()), body.n or 1
        self._choices = [_Choice(texts[i] if texts else "") for i in range(len(ids)) for _ in range(self._n)]
        self._reused: dict[int, int] = {}

    def _orders(self, adapter: str | None) -> list[Order]:
        body = self._body
        wanted = body.max_tokens or _DEFAULT_TOKENS
        configs = [self._service.config_of(body, len(ids), "prompt", wanted, adapter) for ids in self._ids]
        self._service.metrics.prompt_tokens.inc(sum(map(len, self._ids)))
        return [
            Order(ids, config, adapter, i, body.logprobs)
            for ids, config in zip(self._ids, configs, strict=True) for i in range(self._n)
        ]  # fmt: skip

    async def whole(self, request: Request) -> dict[str, Any]:
        """The response in one piece."""
        await self._service.whole(request, self._body.model, len(self._choices), self._orders, self._take)
        choices = [self._choice(i, c.text, c.logprobs, 0, c.finish_reason or "stop") for i, c in enumerate(self._choices)]
        return self._head() | {"choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[str, None]:
        """The response piece by piece, as JSON."""
        options = self._body.stream_options
        usage = {"usage": None} if options is not None and options.include_usage else {}
        begun: set[int] = set()
        async with self._service.answering(self._body.model, len(self._choices), self._orders) as news:
            async for progress in news:
                index = progress.index
                before = self._choices[index].text
                self._take(progress)
                piece = progress.text if index in begun else before + progress.text
                begun.add(index)
                reason = (progress.finish_reason or "stop") if progress.finished else None
                if piece or progress.logprobs or reason:
                    choice = self._choice(index, piece, list(progress.logprobs), len(before), reason)
                    yield json.dumps(self._head() | {"choices": [choice]} | usage, ensure_ascii=False)
        if usage:
            yield json.dumps(self._head() | {"choices": [], "usage": self._usage()}, ensure_ascii=False)

    def _take(self, progress: Progress) -> None:
        choice = self._choices[progress.index]
        choice.text += progress.text
        choice.n_tokens += progress.n_tokens
        choice.logprobs += progress.logprobs
        choice.finish_reason = progress.finish_reason
        prompt = progress.index // self._n
        self._reused[prompt] = max(self._reused.get(prompt, 0), progress.n_reused)

    def _choice(self, index: int, text: str, logprobs: list[TokenLogprob], offset: int, reason: str | None) -> dict[str, Any]:
        found = None if self._body.logprobs is None else self._logprobs(logprobs, offset)
        return {"index": index, "text": text, "logprobs": found, "finish_reason": reason}

    def _head(self) -> dict[str, Any]:
        model = self._body.model or self._service.name
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": model}

    def _usage(self) -> dict[str, Any]:
        written = sum(choice.n_tokens for choice in self._choices)
        return usage_of(sum(map(len, self._ids)), written, sum(self._reused.values()))

    def _logprobs(self, found: list[TokenLogprob], offset: int) -> dict[str, Any]:
        texts = self._service.token_texts
        tokens = [texts.text_of(token.id) for token in found]
        offsets = list(accumulate(map(len, tokens[:-1]), initial=offset)) if tokens else []
        top = [{texts.text_of(i): max(value, -9999.0) for i, value in token.top} for token in found]
        return {
            "tokens": tokens, "token_logprobs": [max(token.logprob, -9999.0) for token in found], "top_logprobs": top,
            "text_offset": offsets,
        }  # fmt: skip

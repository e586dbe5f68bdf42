"""/v1/chat/completions"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..generation.token_logprobs import TokenLogprob
from ..text.prompts import message_ids
from .answering import Service
from .orders import Order, Progress
from .problems import ApiProblem
from .schema import ChatBody, Message
from .streaming import streamed, usage_of
from .token_texts import TokenTexts
from .tool_calls import Call, ToolCallParser


async def chat(request: Request, service: Service) -> Response:
    """Answer a conversation."""
    body = await service.read(request, ChatBody)
    tools = body.tools if body.tools and body.tool_choice != "none" else None
    ids = await service.in_text_thread(lambda: message_ids(service.model, messages_of(body.messages), tools))
    answer = ChatAnswer(service, body, ids, parses=tools is not None and service.tool_form is not None)
    if body.stream:
        return await streamed(request, answer.chunks())
    return JSONResponse(await answer.whole(request))


def messages_of(messages: list[Message]) -> list[dict[str, Any]]:
    """As templates know them: "developer" is OpenAI's newer word for "system"."""
    found = [message.model_dump(exclude_none=True) for message in messages]
    return [m | {"role": "system"} if m["role"] == "developer" else m for m in found]


@dataclass
class _Choice:
    """One of the answers, while it comes."""

    parser: ToolCallParser | None
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    n_tokens: int = 0

    def add(self, news: Progress) -> str:
        """Take in what has come; return what of it is content."""
        piece = news.text if self.parser is None else self.parser.push(news.text)
        self.n_tokens += news.n_tokens
        self.logprobs += news.logprobs
        if news.finished:
            self.finish_reason = news.finish_reason
            if self.parser is not None:
                rest, self.calls = self.parser.finish()
                piece += rest
                self.finish_reason = "tool_calls" if self.calls else news.finish_reason
        self.content += piece
        return piece


class ChatAnswer:
    """The answers to one conversation, whole or in chunks."""

    def __init__(self, service: Service, body: ChatBody, ids: list[int], parses: bool) -> None:
        self._service, self._body, self._ids = service, body, ids
        self._id, self._created = f"chatcmpl-{uuid4().hex}", int(time.time())
        form = service.tool_form if parses else None
        self._choices = [_Choice(ToolCallParser(form) if form else None) for _ in range(body.n or 1)]
        self._parses, self._n_reused = form is not None, 0

    def _orders(self, adapter: str | None) -> list[Order]:
        body = self._body
        if body.top_logprobs and not body.logprobs:
            raise ApiProblem(400, "top_logprobs: expected logprobs to be true with it, got false", "top_logprobs")
        wanted = body.max_completion_tokens or body.max_tokens
        config = self._service.config_of(body, len(self._ids), "messages", wanted, adapter)
        n_top = (body.top_logprobs or 0) if body.logprobs else None
        self._service.metrics.prompt_tokens.inc(len(self._ids))
        return [
            Order(self._ids, config, adapter, i, n_top, skip_special_tokens=not self._parses)
            for i in range(len(self._choices))
        ]

    async def whole(self, request: Request) -> dict[str, Any]:
        """The response in one piece."""
        await self._service.whole(request, self._body.model, len(self._choices), self._orders, self._take)
        choices = [self._choice(index, choice) for index, choice in enumerate(self._choices)]
        return self._head("chat.completion") | {"choices": choices, "usage": self._usage()}

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.calls:
            message |= {"content": choice.content or None, "tool_calls": [_as_json(call) for call in choice.calls]}
        logprobs = self._logprobs(choice.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason or "stop"}

    async def chunks(self) -> AsyncGenerator[str, None]:
        """The response piece by piece, as JSON."""
        options = self._body.stream_options
        usage = {"usage": None} if options is not None and options.include_usage else {}
        async with self._service.answering(self._body.model, len(self._choices), self._orders) as news:
            begun: set[int] = set()
            async for progress in news:
                index, choice = progress.index, self._choices[progress.index]
                if index not in begun:
                    begun.add(index)
                    yield self._chunk(index, {"role": "assistant", "content": ""}, usage)
                piece = self._take(progress)
                logprobs = self._logprobs(list(progress.logprobs)) if self._body.logprobs else None
                if piece or progress.logprobs:
                    yield self._chunk(index, {"content": piece}, usage, logprobs)
                if progress.finished:
                    for i, call in enumerate(choice.calls):
                        yield self._chunk(index, {"tool_calls": [{"index": i} | _as_json(call)]}, usage)
                    yield self._chunk(index, {}, usage, finish_reason=choice.finish_reason or "stop")
        if usage:
            yield json.dumps(self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage()}, ensure_ascii=False)

    def _take(self, progress: Progress) -> str:
        self._n_reused = max(self._n_reused, progress.n_reused)
        return self._choices[progress.index].add(progress)

    def _chunk(
        self, index: int, delta: dict[str, Any], usage: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return json.dumps(self._head("chat.completion.chunk") | {"choices": [choice]} | usage, ensure_ascii=False)

    def _head(self, kind: str) -> dict[str, Any]:
        model = self._body.model or self._service.name
        return {"id": self._id, "object": kind, "created": self._created, "model": model, "system_fingerprint": None}

    def _usage(self) -> dict[str, Any]:
        return usage_of(len(self._ids), sum(choice.n_tokens for choice in self._choices), self._n_reused)

    def _logprobs(self, found: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        texts = self._service.token_texts
        content = [
            _of_token(texts, token.id, token.logprob)
            | {"top_logprobs": [_of_token(texts, i, value) for i, value in token.top]}
            for token in found
        ]
        return {"content": content, "refusal": None}


def _of_token(texts: TokenTexts, token: int, logprob: float) -> dict[str, Any]:
    data = texts.bytes_of(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}


def _as_json(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

"""Answers in pieces: server-sent events, what fails in the middle of them, and the tokens that were counted."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .answering import problem_of
from .requests import EventStream, while_connected

_LOG = logging.getLogger("lora_c.serve")


async def streamed(request: Request, chunks: AsyncGenerator[str, None]) -> Response:
    """A response of chunks. The first one is there before the headers are sent: what fails at once has a status of its own."""
    first = await while_connected(request.receive, chunks.__anext__())
    return EventStream(_events(first, chunks), chunks)


async def _events(first: str, chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    yield first
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        problem = problem_of(error)
        if problem.status == 500:
            _LOG.exception("stream")
        yield json.dumps(problem.as_json())
        return
    yield "[DONE]"


def usage_of(n_prompt: int, n_written: int, n_reused: int) -> dict[str, Any]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": n_prompt + n_written,
        "prompt_tokens_details": {"cached_tokens": n_reused},
    }  # fmt: skip

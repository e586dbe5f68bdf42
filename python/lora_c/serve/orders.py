"""What the server's loop and the thread that computes tell each other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..configs import GenerationConfig

if TYPE_CHECKING:
    from ..generation.answer import Answer
    from ..generation.token_logprobs import TokenLogprob


@dataclass
class Progress:
    """What has come of one answer."""

    index: int
    text: str
    n_tokens: int
    logprobs: Sequence[TokenLogprob]
    finished: bool
    finish_reason: str | None
    error: Exception | None
    n_reused: int


@dataclass
class Order:
    """An answer that is wanted."""

    prompt: list[int]
    config: GenerationConfig
    adapter: str | None
    repetition: int = 0
    top_logprobs: int | None = None
    skip_special_tokens: bool = True


@dataclass(eq=False)
class Stream:
    """Answers to one request, as they come. `events` is filled by the engine, and read in the loop of the server; None: the
    time of the request is over, or the server ends."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Progress | None] = field(default_factory=asyncio.Queue)
    answers: list[Answer] = field(default_factory=list)
    n: int = 0
    gone: bool = False

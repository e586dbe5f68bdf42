"""From a request to the pieces of its answers: what all handlers share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ..configs import GenerationConfig
from ..errors import LoraCError
from .orders import Order, Progress, Stream
from .parsing import parse
from .problems import ApiProblem
from .requests import body_of, while_connected
from .schema import Body, Sampling
from .token_texts import TokenTexts
from .tool_calls import form_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..configs.serving import ServeConfig
    from ..model.model import Model
    from .adapters import Adapters
    from .engine import Engine
    from .metrics import Metrics

T = TypeVar("T")
B = TypeVar("B", bound=Body)


class Service:
    """A model, its engine and its adapters.

    Attributes
    ----------
    draining : bool
        Whether the server is about to end.
    """

    def __init__(self, model: Model, engine: Engine, adapters: Adapters, config: ServeConfig, metrics: Metrics) -> None:
        self.model, self.engine, self.adapters, self.config, self.metrics = model, engine, adapters, config, metrics
        self.name, self.created, self.draining = adapters.base, int(time.time()), False
        self._streams: set[Stream] = set()
        self._broken_off = False
        self.token_texts = TokenTexts(model.tokenizer)
        self.tool_form = form_of(model.tokenizer.tool_template or model.tokenizer.chat_template)
        self._texts = ThreadPoolExecutor(1, "lora-c texts")  # a long template or text does not hold up the loop

    async def read(self, request: Request, cls: type[B]) -> B:
        """The fields of a request."""
        data = await body_of(request, self.config.max_body << 10, self.config.read_timeout)
        return await self.in_text_thread(lambda: parse(cls, data))

    async def in_text_thread(self, work: Callable[[], T], field: str | None = None) -> T:
        """Templates, tokenizing, JSON; of a field of the request, which errors then name.

        Raises
        ------
        ApiProblem
            In place of an error of the library.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._texts, work)
        except LoraCError as error:
            said = str(error)
            for name in ("prompt: ", "text: ") if field else ():
                said = f"{field}: {said[len(name) :]}" if said.startswith(name) else said
            raise ApiProblem(400, said, field) from None
        except UnicodeError:
            raise ApiProblem(400, "body: expected texts of Unicode characters, got half of a surrogate pair") from None

    @asynccontextmanager
    async def used(self, model: str | None, n: int) -> AsyncIterator[str | None]:
        """A place for so many answers, and the name of a model's adapter on the base, while a block runs.

        Raises
        ------
        ApiProblem
            There is no such model, or too many wait.
        """
        if self.draining:
            raise ApiProblem(503, "server: expected no request while it ends, got one", headers={"Retry-After": "5"})
        with self.engine.place(n):
            async with self.adapters.used(model) as adapter:
                yield adapter

    @asynccontextmanager
    async def answering(
        self, model: str | None, n: int, orders_with: Callable[[str | None], Sequence[Order]]
    ) -> AsyncIterator[AsyncGenerator[Progress, None]]:
        """Begin the n answers that `orders_with` makes for an adapter; they leave the batch where the block ends.

        Raises
        ------
        ApiProblem
            There is no such model, or too many wait.
        """
        async with self.used(model, n) as adapter:
            stream = self.engine.open(orders_with(adapter))
            self._streams.add(stream)
            began = time.monotonic()
            try:
                yield self._progress(stream, began)
            finally:
                self._streams.discard(stream)
                self.engine.close(stream)
                self.metrics.duration.observe(time.monotonic() - began)

    async def whole(
        self, request: Request, model: str | None, n: int, orders_with: Callable[[str | None], Sequence[Order]],
        take: Callable[[Progress], Any],
    ) -> None:  # fmt: skip
        """Give `take` all pieces of the answers, as long as the client is there."""

        async def collect() -> None:
            async with self.answering(model, n, orders_with) as news:
                async for progress in news:
                    take(progress)

        await while_connected(request.receive, collect())

    async def _progress(self, stream: Stream, began: float) -> AsyncGenerator[Progress, None]:
        left, begun = stream.n, set()
        # No wait_for: until Python 3.12 it drops a cancellation that comes with an event: that of a client that has left.
        seconds = max(self.config.request_timeout - (time.monotonic() - began), 0.0)
        clock = stream.loop.call_later(0 if self._broken_off else seconds, stream.events.put_nowait, None)
        try:
            while left:
                news = await stream.events.get()
                if news is None:
                    raise self._ending() if self._broken_off else self.too_late()
                if news.error is not None:
                    raise problem_of(news.error)
                if news.index not in begun:
                    begun.add(news.index)
                    self.metrics.first_token.observe(time.monotonic() - began)
                    self.metrics.reused_tokens.inc(news.n_reused)
                left -= news.finished
                yield news
        finally:
            clock.cancel()

    def break_off(self) -> int:
        """End every answer: the server ends. Return how many requests had one."""
        self._broken_off = True
        for stream in self._streams:
            stream.events.put_nowait(None)
        return len(self._streams)

    def _ending(self) -> ApiProblem:
        message = f"server: expected answers to end within {self.config.drain_timeout:g} seconds of its end, got a part"
        return ApiProblem(503, message, code="server_ends", headers={"Retry-After": "5"})

    def too_late(self) -> ApiProblem:
        """What a request is told that takes longer than it may."""
        seconds = self.config.request_timeout
        return ApiProblem(504, f"request: expected an answer within {seconds:g} seconds, got a part", code="timeout")

    def limit(self, adapter: str | None) -> int:
        """The most tokens that prompt and answer have together."""
        return min(self.engine.max_tokens, self.model.context_with(adapter))

    def config_of(
        self, body: Sampling, n_prompt: int, field: str, wanted: int | None, adapter: str | None
    ) -> GenerationConfig:
        """How an answer is written: as the request says, else as the model's generation_config.json, else by plain draws.

        `n_prompt` is the number of tokens of the prompt, which stands in `field` of the request.

        Raises
        ------
        ApiProblem
            The prompt leaves no room, or the settings cannot be.
        """
        room = self.limit(adapter) - n_prompt
        if room < 1:
            raise ApiProblem(
                400, f"{field}: expected fewer than {self.limit(adapter)} tokens, got {n_prompt}; shorten it", field,
                "context_length_exceeded",
            )  # fmt: skip
        options: dict[str, Any] = self.model.generation_config.model_dump(exclude_unset=True)
        for name in ("num_return_sequences", "seed"):
            options.pop(name, None)
        given = {
            "temperature": body.temperature, "top_p": body.top_p, "min_p": body.min_p, "seed": body.seed,
            "top_k": None if body.top_k is None else max(body.top_k, 0), "repetition_penalty": body.repetition_penalty,
            "min_new_tokens": body.min_tokens,
        }  # fmt: skip
        options |= {name: value for name, value in given.items() if value is not None}
        if body.temperature is not None:
            options.pop("do_sample", None)
        elif "temperature" not in options and options.get("do_sample", True) is not False:
            options["temperature"] = 1.0
        if body.seed is not None:
            options["seed"] = body.seed % 2**63
        if self.config.precision is not None:
            options["precision"] = self.config.precision
        options["max_new_tokens"] = min(wanted or room, room)
        options["min_new_tokens"] = min(options.get("min_new_tokens", 0), options["max_new_tokens"])
        try:
            return GenerationConfig(**options, stop_strings=body.stops, ignore_eos=body.ignore_eos)
        except LoraCError as error:
            raise ApiProblem(400, str(error)) from None


def problem_of(error: Exception) -> ApiProblem:
    """What a client is told of an error in the engine."""
    if isinstance(error, ApiProblem):
        return error
    if isinstance(error, LoraCError):
        return ApiProblem(400, str(error))
    if isinstance(error, MemoryError):
        return ApiProblem(503, "server: expected memory for this request, got none", headers={"Retry-After": "10"})
    return ApiProblem(500, f"server: {type(error).__name__}; see its log")

"""The thread that computes: answers that join and leave the batch, and other work between two of its steps."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, LoraCError
from ..generation.batch import Batch
from .orders import Order, Progress, Stream
from .problems import ApiProblem, too_busy

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..generation.answer import Answer
    from ..model.model import Model
    from .metrics import Metrics

T = TypeVar("T")
_LOG = logging.getLogger("lora_c.serve")


class Engine:
    """Owns the batch; everything that uses the model runs in its thread.

    Parameters
    ----------
    n_waiting : int
        Answers that may wait for a sequence.
    max_tokens : int, optional
        As `Batch` has it.

    Raises
    ------
    ConfigError
        The model's context is shorter.
    """

    def __init__(
        self, model: Model, n_sequences: int, n_waiting: int, max_tokens: int | None, prompt_block: int, metrics: Metrics
    ) -> None:
        context = model.context_with(None)
        if max_tokens is not None and max_tokens > context:
            raise ConfigError(
                f"max_seq_length: expected at most the model's context of {context:,} tokens, got {max_tokens:,}"
            )
        self.model, self.n_sequences, self.n_waiting, self.metrics = model, n_sequences, n_waiting, metrics
        self._make_batch: Callable[[], Batch] = partial(Batch, model, n_sequences, max_tokens, prompt_block)
        self._batch = self._make_batch()
        self.max_tokens = self._batch.max_tokens
        self.n_open = 0  # answers of requests that are not closed; only the server's loop changes it (`place`)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._watched: dict[Answer, tuple[Stream, int, int]] = {}  # index in its stream, tokens that were told
        self._thread = threading.Thread(target=self._run, name="lora-c engine", daemon=True)

    # -- what the server's loop calls ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to compute. The cache is made here, so that memory that is missing is said before anybody asks.

        Raises
        ------
        ConfigError
            There is no memory for it.
        """
        try:
            self._batch.step()
        except MemoryError as error:
            raise ConfigError(
                f"max_seq_length: expected memory for {self.n_sequences} answers of {self.max_tokens:,} tokens, got none "
                f"({error}); give a smaller --max-seq-length or --max-num-seqs"
            ) from None
        self._thread.start()

    def add_adapter(self, name: str, adapter: Adapter) -> Future[None]:
        """Put an adapter on the model."""
        return self.between_steps(lambda: self.model.adapter_set.add(name, adapter))

    def remove_adapter(self, name: str) -> Future[None]:
        """Take one off that no answer has any more."""

        def work() -> None:
            self.model.adapter_set.remove(name)
            if not self._batch:
                self._batch.step()  # what was read with it is forgotten

        return self.between_steps(work)

    def stop(self) -> None:
        """End when what is under way has been stepped once; what waits is dropped."""
        self._jobs.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it computes."""
        return self._thread.is_alive()

    def between_steps(self, work: Callable[[], T]) -> Future[T]:
        """Let a function use the model while no step runs."""
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

        self._jobs.put(job)
        return future

    @contextmanager
    def place(self, n: int) -> Iterator[None]:
        """Room for so many answers, while a block runs; taken before anything is done for a request.

        Raises
        ------
        ApiProblem
            Too many wait already, or there is never room for so many.
        """
        most = self.n_sequences + self.n_waiting
        if n > most:
            raise ApiProblem(
                400, f"n: expected at most {most} answers to a request (--max-num-seqs, --max-queue), got {n}", "n"
            )
        if self.n_open + n > most:
            seconds = 1 + self.n_open / self.n_sequences
            raise too_busy(f"requests: expected at most {most} answers at a time, got more; try again later", seconds)
        self.n_open += n
        try:
            yield
        finally:
            self.n_open -= n

    def open(self, orders: Sequence[Order]) -> Stream:
        """Begin to answer, in a place."""
        stream = Stream(asyncio.get_running_loop(), n=len(orders))
        self._jobs.put(lambda: self._add(stream, orders))
        return stream

    def close(self, stream: Stream) -> None:
        """The request is done, or its client has left: what of it is under way leaves the batch."""
        if not stream.gone:
            stream.gone = True
            self._jobs.put(lambda: self._remove(stream))

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(block=not self._batch)
            except queue.Empty:  # all that waits comes before the next step
                self._step()
            else:
                if job is None:
                    return
                try:
                    job()
                except Exception:  # whatever it was, the others are answered
                    _LOG.exception("engine")
            self.metrics.engine(self._batch)

    def _step(self) -> None:
        failed: Exception | None = None
        try:
            self._batch.step()
        except Exception as error:  # memory, or a fault of the engine: nobody waits for ever, and the next ones are answered
            failed = error
            _LOG.exception("engine")
            self._batch = self._make_batch()
        self._send([news for answer in list(self._watched) if (news := self._news(answer, failed or answer.error))])

    def _add(self, stream: Stream, orders: Sequence[Order]) -> None:
        for index, order in enumerate(orders):
            if stream.gone:
                return
            try:
                answer = self._batch.add(
                    order.prompt, order.config, adapter=order.adapter, repetition=order.repetition,
                    top_logprobs=order.top_logprobs, skip_special_tokens=order.skip_special_tokens,
                )  # fmt: skip
            except Exception as error:
                if not isinstance(error, LoraCError):
                    _LOG.exception("engine")
                self._send([(stream, Progress(index, "", 0, (), True, None, error, 0))])
                continue
            stream.answers.append(answer)
            self._watched[answer] = (stream, index, 0)

    def _remove(self, stream: Stream) -> None:
        for answer in stream.answers:
            self._watched.pop(answer, None)
            with suppress(LoraCError):  # one of a batch that was given up
                self._batch.remove(answer)
        stream.answers.clear()

    def _news(self, answer: Answer, error: Exception | None) -> tuple[Stream, Progress] | None:
        """What has come since the last time, if anything."""
        stream, index, told = self._watched[answer]
        finished, n_new = answer.finished or error is not None, len(answer.ids) - told
        if not n_new and not finished:
            return None
        self._watched[answer] = (stream, index, len(answer.ids))
        if finished:
            del self._watched[answer]
        self.metrics.tokens(n_new)
        logprobs = tuple(answer.logprobs[told:]) if answer.logprobs is not None else ()
        return stream, Progress(index, answer.take(), n_new, logprobs, finished, answer.finish_reason, error, answer.n_reused)

    def _send(self, news: list[tuple[Stream, Progress]]) -> None:
        """Wake every loop once."""

        def put() -> None:
            for stream, progress in news:
                stream.events.put_nowait(progress)

        if news:
            with suppress(RuntimeError):  # the loop has ended
                news[0][0].loop.call_soon_threadsafe(put)


async def result_of(future: Future[Any]) -> Any:
    """The result of work between two steps."""
    return await asyncio.wrap_future(future)

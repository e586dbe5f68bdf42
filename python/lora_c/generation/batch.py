"""The loop of generation: answers to several prompts, decoded together, that join and leave between two steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Lock
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from .._core import DECODE_BATCH
from ..configs import GenerationConfig
from ..errors import AdapterError, ConfigError
from ..text.prompts import need_language_model, prompt_ids
from .answer import Answer, Writer, weights_of
from .sampling import with_seed
from .sequences import Sequences

if TYPE_CHECKING:
    from ..model.model import Model

_MOST_TOKENS = 4096  # of a sequence where nobody says; the cache takes memory for all of them


class Batch:
    """Answers to several prompts, each the same as alone, bit for bit, whatever it is decoded with.

    Parameters
    ----------
    model : Model
        Its adapters may be used side by side.
    n_sequences : int
        Answers that are under way at a time, 16 at most; others wait.
    max_tokens : int, optional
        The most that prompt and answer have together, for which the cache takes memory (and for virtual tokens of the model's
        adapters); by default the model's context, up to 4,096.
    prompt_block : int, optional
        Read prompts in blocks of so many tokens, one block in a step, so that a long one does not hold up the others, and
        copy the blocks with which another one began. A prompt that is longer than a block gets other bits so than in one
        pass, the same ones always. By default a prompt is read whole; so it is where RoPE's angles change with the length.

    Notes
    -----
    ``len(batch)`` is the number of answers that have not ended, and a batch without any counts as false.

    Examples
    --------
    >>> batch = lc.Batch(model)
    >>> poem = batch.add("Roses are red", adapter="poems", max_new_tokens=40)
    >>> plain = batch.add("Roses are red", adapter=None)
    >>> while batch:
    ...     ended = batch.step()
    ...     print(poem.take(), end="")  # what has come since the last call
    ...     for answer in ended:
    ...         print(answer.adapter, answer.text)
    """

    def __init__(
        self, model: Model, n_sequences: int = DECODE_BATCH, max_tokens: int | None = None, prompt_block: int | None = None
    ) -> None:
        if not hasattr(model, "adapter_set"):
            raise ConfigError(f"model: expected a Model, got {type(model).__name__}; load_model makes one")
        need_language_model(model, "Batch")
        if not isinstance(n_sequences, int) or not 1 <= n_sequences <= DECODE_BATCH:
            raise ConfigError(f"n_sequences: expected 1 to {DECODE_BATCH}, got {n_sequences!r}; what is beyond waits")
        context = model.context_with(None)
        if max_tokens is not None and (not isinstance(max_tokens, int) or not 1 <= max_tokens <= context):
            raise ConfigError(f"max_tokens: expected 1 to the model's context of {context}, got {max_tokens!r}")
        if prompt_block is not None and (not isinstance(prompt_block, int) or prompt_block < 1):
            raise ConfigError(f"prompt_block: expected 1 or more tokens, got {prompt_block!r}")
        self.model = model
        self.max_tokens = min(context, _MOST_TOKENS) if max_tokens is None else max_tokens
        self._sequences = Sequences(model, n_sequences, self.max_tokens, prompt_block)
        self._stepping = Lock()
        self._waiting: deque[Writer] = deque()
        self._ended: list[Answer] = []  # that no step has returned yet: one that an exception broke off returns nothing

    def __repr__(self) -> str:
        return f"Batch({len(self._sequences.live)} under way, {len(self._waiting)} waiting, max_tokens={self.max_tokens})"

    def __bool__(self) -> bool:
        return bool(self._waiting or self._sequences.live or self._ended)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sequences.live)

    @property
    def n_running(self) -> int:
        """Answers that are under way; the others wait."""
        return len(self._sequences.live)

    def add(
        self,
        prompt: Any,
        config: GenerationConfig | None = None,
        *,
        adapter: str | None | EllipsisType = ...,
        repetition: int = 0,
        top_logprobs: int | None = None,
        skip_special_tokens: bool = True,
        **options: Any,
    ) -> Answer:
        """Let a prompt join; its answer begins with the next step that has room for it.

        Parameters
        ----------
        prompt : str, list of dict, or list of int
            A text, chat messages, or token ids, as for `Model.generate`.
        config, **options
            A `GenerationConfig` and/or its fields, but for num_return_sequences: add the prompt several times.
        adapter : str, optional
            The name of one of the model's adapters, or None for the bare base; by default what the model uses now.
        repetition : int
            With one seed, each repetition draws other tokens.
        top_logprobs : int, optional
            Keep the log-probability of every token in `Answer.logprobs`, and those of so many of the most probable ones.
        skip_special_tokens : bool
            Whether special tokens are left out of the text.

        Raises
        ------
        AdapterError
            There is no adapter of that name, or one is folded into the weights.
        ConfigError
            Prompt and answer can be longer than `max_tokens`.
        DataError
            The prompt cannot be read, or leaves the context no room.
        """
        config = with_seed(resolve(config, options))
        for option, value in (("repetition", repetition), ("top_logprobs", top_logprobs or 0)):
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f"{option}: expected 0 or more, got {value!r}")
        if config.num_return_sequences > 1:
            n = config.num_return_sequences
            raise ConfigError(f"num_return_sequences: expected 1 for one answer, got {n}; add it n times, with repetitions")
        name = self.model.active_adapter if isinstance(adapter, EllipsisType) else adapter
        _check_adapter(self.model, name)
        answer = Answer(prompt_ids(self.model, prompt, limit=self.model.context_with(name)), name)
        writer = Writer(self.model, answer, config, repetition, top_logprobs, skip_special_tokens)
        if writer.most_tokens > self.max_tokens:
            raise ConfigError(
                f"max_tokens: expected at least the {writer.most_tokens} tokens that prompt and answer can have, got "
                f"{self.max_tokens}; give Batch a larger max_tokens, or a smaller max_new_tokens"
            )
        self._waiting.append(writer)
        return answer

    def remove(self, answer: Answer) -> None:
        """Let an answer leave before its end; it keeps what it has. One that has ended stays as it is.

        Parameters
        ----------
        answer : Answer
            What `add` returned.
        """
        if not isinstance(answer, Answer):
            raise ConfigError(f"answer: expected what add returned, got {type(answer).__name__}")
        if answer.finished:
            return
        writer = next((w for w in (*self._sequences.live, *self._waiting) if w.answer is answer), None)
        if writer is None:
            raise ConfigError("answer: expected one of this batch, got one of another")
        writer.end()
        self._take_out(writer)

    def step(self) -> list[Answer]:
        """Write one token of every answer that is under way, begin waiting ones where there is room.

        An answer whose adapter was taken off, exchanged or merged meanwhile ends with its `error`; the others go on. A step
        that an exception broke off can be taken again. What the weights are must not change between two steps otherwise.

        Returns
        -------
        list of Answer
            Those that have ended with it, and those of a step before that was broken off.
        """
        if not self._stepping.acquire(blocking=False):
            raise RuntimeError("lora_c.Batch: in use by another thread; give each thread its own or take a lock")
        try:
            return self._step()
        finally:
            self._stepping.release()

    def _step(self) -> list[Answer]:
        self._end_those_of_other_weights()
        sequences = self._sequences
        sequences.prepare(self._waiting[0].most_rows if self._waiting else 0)
        for writers in list(sequences.passes(sequences.writing())):
            for writer, logits in zip(writers, sequences.decode(writers), strict=True):
                writer.advance(logits)
            self._sort_out(writers)
        self._read_prompts()
        ended, self._ended = self._ended, []
        return ended

    def _read_prompts(self) -> None:
        """Of those for which there is room all; in blocks only so much as a block has, of those that have begun first."""
        sequences, blocks = self._sequences, self._sequences.blocks
        left = blocks.size if blocks else 1
        while left > 0:
            writer = sequences.reading() if blocks else None
            if writer is None:
                if not self._waiting or not sequences.fits(self._waiting[0]):
                    return
                writer = self._waiting[0]
                sequences.take_in(writer)
                self._waiting.popleft()
            if blocks:
                n, logits = sequences.read_block(writer, blocks)
                left -= n
            else:
                logits = sequences.read(writer)
            if logits is not None:
                writer.advance(logits)
                self._sort_out([writer])

    def run(self) -> list[Answer]:
        """Take steps until every answer has ended; return them in the order of their ends."""
        ended = []
        while self:
            ended += self.step()
        return ended

    # -- who is there, and with what ----------------------------------------------------------------------------------

    def _sort_out(self, writers: Iterable[Writer]) -> None:
        """Let those leave that have ended."""
        for writer in [writer for writer in writers if writer.answer.finished]:
            self._take_out(writer)
            self._ended.append(writer.answer)

    def _take_out(self, writer: Writer) -> None:
        if writer in self._waiting:
            self._waiting.remove(writer)
        self._sequences.take_out(writer)

    def _end_those_of_other_weights(self) -> None:
        writers = [*self._sequences.live, *self._waiting]
        for writer in writers:
            name = writer.answer.adapter
            if any(a is not b for a, b in zip(writer.weights, weights_of(self.model, name), strict=True)):
                what = "the bare base" if name is None else f"the adapter {name!r}"
                error = f"adapter: expected {what} as it was until the answer ends, got other weights; add the prompt again"
                writer.end(AdapterError(error))
        self._sort_out(writers)
        if self._sequences.blocks is not None:
            self._sequences.blocks.forget_other_weights(self.model)


def _check_adapter(model: Model, name: str | None) -> None:
    if name is not None and name not in model.adapter_set:
        known = ", ".join(model.adapter_names) or "none"
        raise AdapterError(f"adapter: expected one of the model's adapters ({known}), got {name!r}")
    if model.is_merged and name != model.active_adapter:
        raise AdapterError(
            f"adapter: expected a model that is not merged, got one with {model.active_adapter!r} in its weights; call "
            "unmerge_adapter() first"
        )


def resolve(config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    """Combine a configuration with keyword options; an option wins."""
    if config is None:
        return GenerationConfig(**options)
    if not isinstance(config, GenerationConfig):
        raise ConfigError(f"config: expected a GenerationConfig, got {type(config).__name__}; or give options by keyword")
    return GenerationConfig(**(config.model_dump(exclude_unset=True) | options)) if options else config

"""Training data: JSONL and plain text to token ids with a loss mask.

A line of a JSONL file is one of
    {"messages": [{"role", "content"}, ...]}         rendered with the chat template, loss on the assistant's turns
    {"prompt": str, "completion": str}               loss on the completion and the end token
    {"instruction": str, "input": str, "output": str}  alpaca: a user and an assistant turn
    {"conversations": [{"from", "value"}, ...]}      ShareGPT: the same as messages
    {"text": str}                                    loss on every token
A ``.txt`` file is continued text: it is cut into consecutive pieces of ``max_seq_length`` tokens.

Rule for long examples: the first ``max_seq_length`` tokens are kept. An example whose kept part holds no token with
loss is left out. Both are counted in the report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .chat import alpaca_messages, assistant_samples, sharegpt_messages
from .errors import DataError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

KINDS = ("messages", "conversations", "prompt", "instruction", "text")


@dataclass(frozen=True)
class Sample:
    """One training sequence.

    Shapes
        input_ids (n,) int32; loss_mask (n,) float32, 1 where the token itself is to be predicted.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_predicted(self) -> int:
        """Tokens that carry loss; the first token of a sequence is never predicted."""
        return int(np.count_nonzero(self.loss_mask[1:]))


@dataclass
class Dataset:
    """Samples in file order, and what happened to the examples on the way."""

    samples: list[Sample]
    n_examples: int = 0
    n_truncated: int = 0
    n_without_loss: int = 0
    source: str = ""
    texts: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        return self.samples[i]

    @property
    def n_tokens(self) -> int:
        return sum(len(s) for s in self.samples)

    @property
    def n_predicted(self) -> int:
        return sum(s.n_predicted for s in self.samples)

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """(train, held-out): a seeded choice of round(fraction * n) samples, at least one of each."""
        n = len(self.samples)
        if n < 2:
            raise DataError(f"val_fraction: expected at least 2 samples to split, got {n}; give --eval-data or more data")
        n_eval = min(max(1, round(fraction * n)), n - 1)
        order = np.random.Generator(np.random.Philox(key=[seed, 0x5B11])).permutation(n)
        held_out = set(order[:n_eval].tolist())
        parts = ([], [])  # type: tuple[list[Sample], list[Sample]]
        for i, sample in enumerate(self.samples):
            parts[i in held_out].append(sample)
        return Dataset(parts[0], source=self.source), Dataset(parts[1], source=self.source)

    def report(self) -> str:
        """One line for people."""
        line = f"{len(self.samples):,} sequences, {self.n_tokens:,} tokens, {self.n_predicted:,} with loss"
        if self.n_truncated:
            line += f"; {self.n_truncated:,} cut to the first tokens that fit"
        if self.n_without_loss:
            line += f"; {self.n_without_loss:,} left out (no token with loss remained)"
        return line


def load_dataset(path: str | Path, tokenizer: Tokenizer, *, max_seq_length: int = 1024, limit: int | None = None) -> Dataset:
    """Read a JSONL or text file and turn it into samples.

    Parameters
        path            a ``.jsonl``/``.json`` (one object per line) or ``.txt`` file
        tokenizer       of the model that will be trained
        max_seq_length  longest sequence in tokens (>= 2)
        limit           read at most this many examples
    Raises
        DataError       naming file and line
    """
    path = Path(path)
    if max_seq_length < 2:
        raise DataError(f"max_seq_length: expected >= 2, got {max_seq_length}")
    if not path.is_file():
        raise DataError(f"data: expected a .jsonl or .txt file, got {str(path)!r}, which does not exist or is a folder")
    dataset = Dataset([], source=str(path))
    if path.suffix == ".txt":
        _add_text_file(dataset, path, tokenizer, max_seq_length)
    else:
        for line, record in read_jsonl(path):
            if limit is not None and dataset.n_examples >= limit:
                break
            _add_record(dataset, record, tokenizer, max_seq_length, f"{path}:{line}")
    if not dataset.samples:
        raise DataError(f"{path}: expected at least one example with a token that carries loss, got {dataset.report()}")
    return dataset


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank."""
    with open(path, encoding="utf-8") as file:
        lines = enumerate(file, 1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}") from None
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}:{number}: expected a JSON object, got {line.strip()[:40]!r} ({error.msg}, column {error.colno})"
                ) from None
            except RecursionError:
                raise DataError(f"{path}:{number}: expected a flat JSON object, got one nested too deeply") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}:{number}: expected a JSON object, got a {type(record).__name__}")
            yield number, record


def samples_from_record(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> list[Sample]:
    """The sequences of one example (several only when the chat template rewrites earlier turns)."""
    kind = next((k for k in KINDS if k in record), None)
    if kind is None:
        raise DataError(
            f"{where}: expected 'messages', 'prompt'/'completion', 'instruction'/'output', 'conversations' or 'text', "
            f"got the keys {sorted(record)[:8]}"
        )
    if kind == "messages":
        return _as_samples(assistant_samples(record["messages"], tokenizer, where, record.get("tools")))
    if kind == "conversations":
        return _as_samples(assistant_samples(sharegpt_messages(record["conversations"], where), tokenizer, where))
    if kind == "instruction":
        _need_strings(record, ("instruction", "output"), where)
        if tokenizer.chat_template is not None:
            return _as_samples(assistant_samples(alpaca_messages(record), tokenizer, where))
        prompt = "### Instruction:\n" + record["instruction"]
        prompt += f"\n\n### Input:\n{record['input']}" if record.get("input") else ""
        return [_prompt_sample(prompt + "\n\n### Response:\n", record["output"], tokenizer)]
    if kind == "prompt":
        _need_strings(record, ("prompt", "completion"), where)
        return [_prompt_sample(record["prompt"], record["completion"], tokenizer)]
    _need_strings(record, ("text",), where)
    ids = tokenizer.encode(record["text"], add_special_tokens=True)
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    return [_sample(ids, np.ones(len(ids), np.float32))]


def _prompt_sample(prompt: str, completion: str, tokenizer: Tokenizer) -> Sample:
    """Prompt and completion are tokenized as one text, so a word that spans the seam gets the tokens it has in prose."""
    ids, offsets = tokenizer.encode_with_offsets(prompt + completion, add_special_tokens=True)
    mask = [float(end > len(prompt) and end > begin) for begin, end in offsets]
    if tokenizer.eos_token_id is not None:
        ids, mask = [*ids, tokenizer.eos_token_id], [*mask, 1.0]
    return _sample(ids, mask)


def _sample(ids: Sequence[int], mask: Any) -> Sample:
    return Sample(np.asarray(ids, np.int32), np.asarray(mask, np.float32))


def _as_samples(pairs: list[tuple[list[int], list[float]]]) -> list[Sample]:
    return [_sample(ids, mask) for ids, mask in pairs]


def _need_strings(record: dict[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        if not isinstance(record.get(key), str):
            raise DataError(f"{where}: expected {key!r} to be a string, got {type(record.get(key)).__name__}")


def _add_record(dataset: Dataset, record: dict[str, Any], tokenizer: Tokenizer, limit: int, where: str) -> None:
    dataset.n_examples += 1
    dataset.texts.append(record)
    for sample in samples_from_record(record, tokenizer, where):
        if len(sample) > limit:
            dataset.n_truncated += 1
            sample = Sample(sample.input_ids[:limit], sample.loss_mask[:limit])
        if sample.n_predicted == 0:
            dataset.n_without_loss += 1
        else:
            dataset.samples.append(sample)


def _add_text_file(dataset: Dataset, path: Path, tokenizer: Tokenizer, limit: int) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}") from None
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32)
    for begin in range(0, len(ids), limit):
        piece = ids[begin : begin + limit]
        dataset.n_examples += 1
        if len(piece) > 1:
            dataset.samples.append(Sample(piece, np.ones(len(piece), np.float32)))

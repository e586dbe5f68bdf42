"""Samples of one or several files, and what happened to the examples on the way.

Rule for long examples: the first ``max_seq_length`` tokens are kept. An example whose kept part holds no token with
loss is left out. Both are counted in the report. A text file is continued text: it is cut into consecutive pieces of
``max_seq_length`` tokens, each of which begins with what the tokenizer puts before every text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, shorten
from ..notices import tell
from ..text_ids import begin_token_ids
from . import reported
from .fits import check_ids
from .records import kind_of, read_records
from .samples import Sample, samples_from_record
from .splits import FoundFiles, find_files
from .streams import text_blocks
from .text_pieces import cut_pieces, tokenize

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer


@dataclass
class Dataset:
    """Samples in file order, and what happened to the examples on the way."""

    samples: list[Sample]
    n_examples: int = 0
    n_truncated: int = 0
    n_without_loss: int = 0
    source: str = ""
    files: FoundFiles = field(default_factory=FoundFiles)
    begin: str = ""  # what pieces of text files begin with

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
        """(train, held-out): a seeded choice of ceil(fraction * n) samples, as in `datasets`; at least one of each."""
        if not 0 < fraction < 1:
            raise DataError(f"val_fraction: expected a share between 0 and 1, got {fraction}")
        n = len(self.samples)
        if n < 2:
            raise DataError(f"val_fraction: expected at least 2 samples to split, got {n}; give --eval-data or more data")
        n_eval = min(max(1, math.ceil(fraction * n)), n - 1)
        order = np.random.Generator(np.random.Philox(key=[seed, 0x5B11])).permutation(n)
        held_out = set(order[:n_eval].tolist())
        parts = ([], [])  # type: tuple[list[Sample], list[Sample]]
        for i, sample in enumerate(self.samples):
            parts[i in held_out].append(sample)
        train, eval = (replace(self, samples=part, n_examples=len(part), n_truncated=0, n_without_loss=0) for part in parts)
        return train, eval

    def report(self) -> str:
        """One line for people."""
        line = f"{len(self.samples):,} sequences, {self.n_tokens:,} tokens, {self.n_predicted:,} with loss"
        if self.begin:
            line += f"; each piece of text begins with {self.begin}"
        if self.n_truncated:
            line += f"; {self.n_truncated:,} cut to the first tokens that fit"
        if self.n_without_loss:
            line += f"; {self.n_without_loss:,} left out (no token with loss remained)"
        return line


def load_dataset(
    path: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int = 1024,
    limit: int | None = None,
    split: str | Sequence[str] = "train",
) -> Dataset:
    """Read data files and turn them into samples.

    Parameters
        path            a ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet`` or ``.txt`` file, a list of them, or a
                        folder of them; all but Parquet may end in ``.gz``
        tokenizer       of the model that will be trained; sequences are cut to that model's context at the latest
        max_seq_length  longest sequence in tokens (>= 2)
        limit           read at most this many examples
        split           of a folder with files named by splits the one to read: "train", "validation" or "test"; "all"
                        reads every file, several names mean the first one that is there
    Raises
        DataError       naming file and line
    Notes
        What a folder holds besides is named in the result's ``files``, and data among it in a warning.
    """
    if not hasattr(tokenizer, "encode"):
        raise DataError(f"tokenizer: expected a Tokenizer, got a {type(tokenizer).__name__}; a model's is model.tokenizer")
    files = find_files(path, split)
    if files.leaves_data:
        taken = shorten((file.name for file in files.taken), 3)
        tell(f"data: read {taken} ({files.split}), left out: {files.describe_rest()}")
    return load_files(files, tokenizer, max_seq_length=max_seq_length, limit=limit)


def load_files(files: FoundFiles, tokenizer: Tokenizer, *, max_seq_length: int = 1024, limit: int | None = None) -> Dataset:
    """Turn files that were found into samples; see `load_dataset`."""
    if limit is not None and limit < 1:
        raise DataError(f"limit: expected at least 1 example, got {limit}; leave it out to read every one")
    if max_seq_length < 2:
        raise DataError(f"max_seq_length: expected >= 2, got {max_seq_length}")
    max_seq_length = min(max_seq_length, getattr(tokenizer, "model_context_length", None) or max_seq_length)
    dataset = Dataset([], source=shorten(files.taken, 2), files=files)
    counts: Counter[str] = Counter()
    for file in files.taken:
        if limit is not None and dataset.n_examples >= limit:
            break
        if kind_of(file) == ".txt":
            _add_text(dataset, file, tokenizer, max_seq_length, limit)
            continue
        for where, record in read_records(file):
            _add_record(dataset, record, tokenizer, max_seq_length, where, counts)
            if limit is not None and dataset.n_examples >= limit:
                break
    reported.tell_counts(counts, dataset.n_examples, dataset.source)
    if not dataset.samples:
        raise DataError(
            f"{dataset.source}: expected at least one example with a token that carries loss, got {dataset.report()}"
        )
    return dataset


def _add_record(
    dataset: Dataset, record: dict[str, Any], tokenizer: Tokenizer, length: int, where: str, counts: Counter[str]
) -> None:
    dataset.n_examples += 1
    samples = samples_from_record(record, tokenizer, where, counts)
    dataset.n_without_loss += not samples
    for sample in samples:
        check_ids(sample.input_ids, getattr(tokenizer, "model_vocab_size", None), where)
        if len(sample) > length:
            dataset.n_truncated += 1
            sample = replace(sample, input_ids=sample.input_ids[:length].copy(), loss_mask=sample.loss_mask[:length].copy())
        if sample.n_predicted == 0:
            dataset.n_without_loss += 1
        else:
            dataset.samples.append(Sample(sample.input_ids, sample.loss_mask, where, sample.empty))


def _add_text(dataset: Dataset, file: Path, tokenizer: Tokenizer, length: int, limit: int | None) -> None:
    begin = begin_token_ids(tokenizer)
    if length <= len(begin):
        raise DataError(f"max_seq_length: expected more than the {len(begin)} tokens that begin a text, got {length}")
    dataset.begin = tokenizer.decode(begin, skip_special_tokens=False) if begin else ""
    for number, ids in enumerate(cut_pieces(tokenize(text_blocks(file), tokenizer), length, begin), 1):
        if limit is not None and dataset.n_examples >= limit:
            break
        where = f"{file}, piece {number}"
        dataset.n_examples += 1
        check_ids(ids, getattr(tokenizer, "model_vocab_size", None), where)
        if len(ids) > max(1, len(begin)):
            dataset.samples.append(Sample(ids, _text_mask(len(ids), len(begin)), where))


@lru_cache(maxsize=64)
def _text_mask(length: int, n_begin: int) -> NDArray[np.float32]:
    """Loss on all but what begins the piece; the pieces of a text share one array."""
    mask = np.ones(length, np.float32)
    mask[:n_begin] = 0
    mask.flags.writeable = False
    return mask

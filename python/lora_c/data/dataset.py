"""Samples of one or several files, and what happened to the examples on the way.

Rule for long examples: the first ``max_seq_length`` tokens are kept. An example whose kept part holds no token with
loss is left out. Both are counted in the report. A text file is continued text: it is cut into consecutive pieces of
``max_seq_length`` tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, shorten
from . import reported
from .records import data_files, kind_of, read_records, read_text
from .samples import Sample, samples_from_record

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


def load_dataset(
    path: str | Path | Sequence[str | Path], tokenizer: Tokenizer, *, max_seq_length: int = 1024, limit: int | None = None
) -> Dataset:
    """Read data files and turn them into samples.

    Parameters
        path            a ``.jsonl``, ``.json``, ``.parquet`` or ``.txt`` file, a list of them, or a folder of them; all but
                        Parquet may end in ``.gz``
        tokenizer       of the model that will be trained
        max_seq_length  longest sequence in tokens (>= 2)
        limit           read at most this many examples
    Raises
        DataError       naming file and line
    """
    if max_seq_length < 2:
        raise DataError(f"max_seq_length: expected >= 2, got {max_seq_length}")
    files = data_files(path)
    dataset = Dataset([], source=shorten(files, 2))
    counts: Counter[str] = Counter()
    for file in files:
        if kind_of(file) == ".txt":
            _add_text(dataset, read_text(file), tokenizer, max_seq_length)
            continue
        for where, record in read_records(file):
            if limit is not None and dataset.n_examples >= limit:
                break
            _add_record(dataset, record, tokenizer, max_seq_length, where, counts)
    reported.tell_counts(counts, dataset.n_examples, dataset.source)
    if not dataset.samples:
        raise DataError(
            f"{dataset.source}: expected at least one example with a token that carries loss, got {dataset.report()}"
        )
    return dataset


def _add_record(
    dataset: Dataset, record: dict[str, Any], tokenizer: Tokenizer, limit: int, where: str, counts: Counter[str]
) -> None:
    dataset.n_examples += 1
    for sample in samples_from_record(record, tokenizer, where, counts):
        if len(sample) > limit:
            dataset.n_truncated += 1
            sample = replace(sample, input_ids=sample.input_ids[:limit], loss_mask=sample.loss_mask[:limit])
        if sample.n_predicted == 0:
            dataset.n_without_loss += 1
        else:
            dataset.samples.append(sample)


def _add_text(dataset: Dataset, text: str, tokenizer: Tokenizer, limit: int) -> None:
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32)
    for begin in range(0, len(ids), limit):
        piece = ids[begin : begin + limit]
        dataset.n_examples += 1
        if len(piece) > 1:
            dataset.samples.append(Sample(piece, np.ones(len(piece), np.float32)))

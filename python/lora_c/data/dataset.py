"""What was read: samples, and what happened to the examples on the way. `loading.py` makes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .loader import add_records
from .samples import Sample
from .splits import FoundFiles

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


@dataclass(eq=False, repr=False)
class Dataset:
    """Samples in their order, ready for training, and what happened to the examples on the way.

    `load_dataset` reads one from files or from memory, `Dataset.from_records` from memory; ``Dataset(samples)`` is one of
    samples of your own.

    Parameters
    ----------
    samples : list of Sample
        Token ids, each with a mask that says where loss is, or with a label.
    n_examples : int
        Examples that were read; one can make several samples, or none.
    n_truncated : int
        Samples that were cut to the first tokens that fit.
    n_without_loss : int
        Examples that were left out because no token with loss remained.
    n_plain_prompts : int
        Examples with a prompt that is a text: no chat template is put around it.
    source : str
        What was read, for reports.
    files : FoundFiles
        The files that were read, and what lay beside them.
    begin : str
        What every piece of a text file begins with.
    skipped : list of str
        Bad examples that were left out (`skip_bad`), each by its place and what was wrong.
    tokenizer : Tokenizer, optional
        The one that made the ids; `show` writes with it.

    Examples
    --------
    >>> data = lc.Dataset.from_records([{"prompt": "2+2=", "completion": "4"}], model.tokenizer)
    >>> lc.Trainer(model, data, lc.TrainConfig()).train()
    """

    samples: list[Sample]
    n_examples: int = 0
    n_truncated: int = 0
    n_without_loss: int = 0
    n_plain_prompts: int = 0
    source: str = ""
    files: FoundFiles = field(default_factory=FoundFiles)
    begin: str = ""
    skipped: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None

    @classmethod
    def from_records(
        cls,
        records: Iterable[Mapping[str, Any] | str],
        tokenizer: Tokenizer,
        *,
        max_seq_length: int = 1024,
        limit: int | None = None,
        columns: Mapping[str, str] | str | None = None,
        skip_bad: int = 0,
    ) -> Dataset:
        """Turn data in memory into samples.

        Parameters
        ----------
        records : iterable of mapping or str
            Examples as the lines of a JSONL file hold them, or texts to learn as they are: a list, a generator (it is read
            once), a pandas or polars DataFrame, an Arrow table, a `datasets.Dataset`. What is empty in a table is absent
            from its record.
        tokenizer : Tokenizer
            Of the model that will be trained: ``model.tokenizer``.
        max_seq_length : int
            Longest sequence in tokens, at most the model's context.
        limit : int, optional
            Read at most this many examples.
        columns : mapping, optional
            Which column is what, as in ``{"prompt": "question", "completion": "answer"}``.
        skip_bad : int
            Leave out up to so many examples that cannot be used; `skipped` lists them.

        Returns
        -------
        Dataset

        Raises
        ------
        DataError
            An example cannot be used; the message begins with its number, counted from 1.
        """
        options: dict[str, Any] = {"max_seq_length": max_seq_length, "limit": limit, "columns": columns, "skip_bad": skip_bad}
        return add_records(Dataset([]), records, tokenizer, **options)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        return self.samples[i]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __repr__(self) -> str:
        lengths = sorted(map(len, self.samples)) or [0]
        dropped = [f"{self.n_truncated:,} cut", f"{self.n_without_loss:,} left out", f"{len(self.skipped):,} skipped"]
        said = [part for part in dropped if not part.startswith("0 ")]
        return (
            f"Dataset: {len(self.samples):,} sequences from {self.source or 'samples'}\n"
            f"  tokens    {self.n_tokens:,}, {self.n_predicted:,} with loss; the longest sequence has {lengths[-1]:,}, the "
            f"middle one {lengths[len(lengths) // 2]:,}\n"
            f"  examples  {self.n_examples or len(self.samples):,} read, {', '.join(said) or 'none cut or left out'}"
        )

    @property
    def n_tokens(self) -> int:
        """Tokens of all samples."""
        return sum(len(s) for s in self.samples)

    @property
    def n_predicted(self) -> int:
        """Tokens that carry loss."""
        return sum(s.n_predicted for s in self.samples)

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Return (training data, held-out data), chosen by a seed.

        Parameters
        ----------
        fraction : float
            The share that is held out, between 0 and 1: ceil(fraction * n) samples as in `datasets`, at least one of each.
        seed : int
            The same seed chooses the same samples.
        """
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
        train, eval = (
            replace(self, samples=part, n_examples=len(part), n_truncated=0, n_without_loss=0, skipped=[]) for part in parts
        )
        return train, eval

    def report(self) -> str:
        """Return one line for people: how many samples and tokens there are, what was cut and what left out."""
        line = f"{len(self.samples):,} sequences, {self.n_tokens:,} tokens, {self.n_predicted:,} with loss"
        if self.begin:
            line += f"; each piece of text begins with {self.begin}"
        if self.n_truncated:
            line += f"; {self.n_truncated:,} cut to the first tokens that fit"
        if self.n_without_loss:
            line += f"; {self.n_without_loss:,} left out (no token with loss remained)"
        if self.skipped:
            line += f"; {len(self.skipped):,} skipped (bad)"
        return line

    def show(self, n: int = 3, tokenizer: Tokenizer | None = None) -> None:
        """Print the first samples as the model sees them, the tokens with loss in colour; in a notebook as HTML.

        Where there is no colour (a pipe, NO_COLOR), the tokens with loss stand between ⟦ and ⟧.

        Parameters
        ----------
        n : int
            How many samples.
        tokenizer : Tokenizer, optional
            For a data set made of samples of your own; one that was loaded knows its own.
        """
        from .shown import show

        show(self, n, tokenizer)

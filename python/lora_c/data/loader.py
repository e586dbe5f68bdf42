"""Examples, one after another, become the samples of a data set until it has enough.

Rule for long examples: the first ``max_seq_length`` tokens are kept. An example whose kept part holds no token with
loss is left out. Both are counted in the report. A text file is continued text: it is cut into consecutive pieces of
``max_seq_length`` tokens, each of which begins with what the tokenizer puts before every text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..notices import tell
from ..text.dropped_characters import DroppedCharacters
from ..text.encoded_ahead import encoded_ahead
from ..text.text_ids import begin_token_ids
from . import reported
from .columns import check_columns, refuse_other_columns, with_columns, with_named_columns
from .fits import check_ids
from .in_memory import Item, describe, of_split, read_in_memory
from .labelled import labelled_sample
from .samples import Sample, samples_from_record, texts_of_record
from .standard_input import name_of
from .streams import text_blocks
from .text_pieces import cut_pieces, tokenize

if TYPE_CHECKING:
    from ..families.labels import Labels
    from ..text.tokenizer import Tokenizer
    from .dataset import Dataset

_TOGETHER = 512  # records whose texts become tokens together


def add_records(
    dataset: Dataset, data: Any, tokenizer: Tokenizer, split: str | Sequence[str] = "train", **options: Any
) -> Dataset:
    """Turn data in memory into samples of an empty data set; see `Dataset.from_records`."""
    check_tokenizer(tokenizer)
    chosen = of_split(data, split)
    dataset.source, dataset.tokenizer = describe(chosen), tokenizer
    loader = Loader(dataset, tokenizer, **options)
    loader.add_records(read_in_memory(chosen))
    return with_skipped_told(loader.finish('an iterable of mappings such as {"prompt": "…", "completion": "…"}, or of texts'))


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer before any data is read."""
    if not hasattr(tokenizer, "encode_with_offsets"):
        raise DataError(f"tokenizer: expected a Tokenizer, got a {type(tokenizer).__name__}; a model's is model.tokenizer")


def with_skipped_told(dataset: Dataset) -> Dataset:
    """Say how many bad examples were skipped, if any, and return the data set."""
    if dataset.skipped:
        tell(f"{dataset.source}: {len(dataset.skipped):,} bad examples skipped, the first is {dataset.skipped[0]}")
    return dataset


class Loader:
    """Adds examples to a data set until it has enough."""

    def __init__(
        self, dataset: Dataset, tokenizer: Tokenizer, max_seq_length: int = 1024, limit: int | None = None,
        columns: Any = None, skip_bad: int = 0,
    ) -> None:  # fmt: skip
        if limit is not None and limit < 1:
            raise ConfigError(f"limit: expected at least 1 example, got {limit}; leave it out to read every one")
        if max_seq_length < 2:
            raise ConfigError(f"max_seq_length: expected >= 2, got {max_seq_length}")
        if isinstance(skip_bad, bool) or not isinstance(skip_bad, int) or skip_bad < 0:
            raise ConfigError(f"skip_bad: expected a number of examples, 0 or more, got {skip_bad!r}")
        self.dataset, self.tokenizer, self.limit, self.skip_bad = dataset, tokenizer, limit, skip_bad
        self.length = min(max_seq_length, getattr(tokenizer, "model_context_length", None) or max_seq_length)
        self.vocab_size: int | None = getattr(tokenizer, "model_vocab_size", None)
        self.labels: Labels | None = getattr(tokenizer, "model_labels", None)
        self.columns = check_columns(columns) if columns is not None else None
        if self.columns is not None and self.labels is None:
            refuse_other_columns(self.columns)
        self.counts: Counter[str] = Counter()
        self._characters = DroppedCharacters(tokenizer)
        self._dropped: set[str] = set()  # characters, and in how many examples there are some
        self._n_dropped = 0

    def wants_more(self) -> bool:
        """Whether the limit is not reached."""
        return self.limit is None or self.dataset.n_examples < self.limit

    def add_records(self, items: Iterable[Item]) -> None:
        """Add examples of records; not one more is taken from `items` than the limit allows."""
        items = iter(items)
        while self.wants_more():
            left = _TOGETHER if self.limit is None else min(_TOGETHER, self.limit - self.dataset.n_examples)
            together, ended = _take(items, left)
            renamed = [(where, self._renamed(record, where)) for where, record in together]
            texts = chain.from_iterable(texts_of_record(record) for _, record in renamed if not isinstance(record, DataError))
            with encoded_ahead(self.tokenizer, texts):
                for where, record in renamed:
                    self._add_record(record, where)
            if ended is not None:
                raise ended
            if len(together) < left:
                return

    def add_text(self, file: Path) -> None:
        """Add the pieces of a text file."""
        if self.labels is not None:
            raise DataError(f"{name_of(file)}: expected records with 'text' and 'label' for a classifier, got a text file")
        dataset, begin, where = self.dataset, begin_token_ids(self.tokenizer), name_of(file)
        if self.length <= len(begin):
            got = f"max_seq_length: expected more than the {len(begin)} tokens that begin a text, got {self.length}"
            raise DataError(got)
        dataset.begin = self.tokenizer.decode(begin, skip_special_tokens=False) if begin else ""
        pieces = cut_pieces(tokenize(self._noted(text_blocks(file)), self.tokenizer), self.length, begin)
        for number, ids in enumerate(pieces, 1):
            if not self.wants_more():
                break
            dataset.n_examples += 1
            check_ids(ids, self.vocab_size, f"{where}, piece {number}")
            if len(ids) > max(1, len(begin)):
                dataset.samples.append(Sample(ids, _text_mask(len(ids), len(begin)), f"{where}, piece {number}"))

    def _noted(self, blocks: Iterator[str]) -> Iterator[str]:
        """The blocks of a text, looked through on their way."""
        for block in blocks:
            self._dropped |= self._characters.of(block)
            yield block

    def _note_dropped(self, characters: set[str]) -> None:
        self._dropped |= characters
        self._n_dropped += bool(characters)

    def finish(self, form: str) -> Dataset:
        """Return the data set; `form` says how data looks, for whoever gave none."""
        dataset = self.dataset
        if self._dropped:
            tell(reported.dropped(dataset.source, self._dropped, self._n_dropped, dataset.n_examples))
        reported.tell_counts(self.counts, dataset.n_examples, dataset.source)
        if dataset.samples:
            return dataset
        if not dataset.n_examples and not dataset.skipped:
            raise DataError(f"{dataset.source}: expected at least one example, got none: it is empty; give {form}")
        got = dataset.report()
        way_out = "; give a larger max_seq_length" if dataset.n_truncated else ""
        raise DataError(f"{dataset.source}: expected at least one example with a token that carries loss, got {got}{way_out}")

    def _renamed(self, record: Mapping[str, Any] | DataError, where: str) -> Any:
        if self.columns is None or isinstance(record, DataError):
            return record
        try:
            if self.labels is not None:
                return with_named_columns(record, self.columns)
            renamed, aside = with_columns(record, self.columns)
        except DataError as error:
            return DataError(f"{where}: {error}")
        if aside:
            self.counts[reported.beside_columns(aside)] += 1
        return renamed

    def _add_record(self, record: dict[str, Any] | DataError, where: str) -> None:
        dataset = self.dataset
        try:
            if isinstance(record, DataError):
                raise record
            if self.labels is not None:
                self._add_labelled(record, where, self.labels)
                return
            samples = samples_from_record(record, self.tokenizer, where, self.counts)
        except DataError as error:
            self._skip(error)
            return
        self._note_dropped(self._characters.of_record(record))
        dataset.n_examples += 1
        dataset.n_without_loss += not samples
        dataset.n_plain_prompts += not {"messages", "conversations"} & record.keys() and isinstance(record.get("prompt"), str)
        for sample in samples:
            check_ids(sample.input_ids, self.vocab_size, where)
            if len(sample) > self.length:
                dataset.n_truncated += 1
                ids, mask = sample.input_ids[: self.length].copy(), sample.loss_mask[: self.length].copy()
                sample = replace(sample, input_ids=ids, loss_mask=mask)
            if sample.n_predicted == 0:
                dataset.n_without_loss += 1
            else:
                dataset.samples.append(Sample(sample.input_ids, sample.loss_mask, where, sample.empty))

    def _add_labelled(self, record: dict[str, Any], where: str, labels: Labels) -> None:
        sample, cut = labelled_sample(record, self.tokenizer, labels, self.length, where)
        self._note_dropped(self._characters.of_record(record))
        check_ids(sample.input_ids, self.vocab_size, where)
        self.dataset.n_examples += 1
        self.dataset.n_truncated += cut
        self.dataset.samples.append(sample)

    def _skip(self, error: DataError) -> None:
        skipped = self.dataset.skipped
        if not self.skip_bad:
            raise error
        skipped.append(str(error))
        if len(skipped) > self.skip_bad:
            listed = "; ".join(line[:160] for line in skipped[-3:])
            raise DataError(
                f"{self.dataset.source}: expected at most {self.skip_bad} bad examples (skip_bad), got one more; mend them or "
                f"allow more; the last are {listed}"
            )


def _take(items: Iterator[Item], n: int) -> tuple[list[Item], DataError | None]:
    """The next items, and the error that ends them, which counts when those before it are done."""
    taken: list[Item] = []
    try:
        taken.extend(islice(items, n))  # what came before an error stays in the list
    except DataError as error:
        return taken, error
    return taken, None


@lru_cache(maxsize=64)
def _text_mask(length: int, n_begin: int) -> NDArray[np.float32]:
    """Loss on all but what begins the piece; the pieces of a text share one array."""
    mask = np.ones(length, np.float32)
    mask[:n_begin] = 0
    mask.flags.writeable = False
    return mask

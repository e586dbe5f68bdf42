"""From files, or from what is in memory, to samples.

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

from ..dropped_characters import DroppedCharacters
from ..encoded_ahead import encoded_ahead
from ..errors import ConfigError, DataError, shorten
from ..notices import tell
from ..text_ids import begin_token_ids
from . import reported
from .columns import check_columns, with_columns
from .dataset import Dataset
from .fits import check_ids
from .in_memory import Item, describe, is_in_memory, of_split, read_in_memory
from .records import kind_of, read_good_and_bad
from .samples import Sample, samples_from_record, texts_of_record
from .splits import FoundFiles, find_files
from .standard_input import name_of
from .streams import text_blocks
from .text_pieces import cut_pieces, tokenize

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

_TOGETHER = 512  # records whose texts become tokens together


def load_dataset(
    data: Any,
    tokenizer: Tokenizer,
    *,
    max_seq_length: int = 1024,
    limit: int | None = None,
    split: str | Sequence[str] = "train",
    columns: Mapping[str, str] | str | None = None,
    skip_bad: int = 0,
) -> Dataset:
    """Read data from files or from memory and turn it into samples.

    Parameters
    ----------
    data : path, list of paths, or iterable of mappings or texts
        A ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet`` or ``.txt`` file, a folder of them, a pattern such as
        ``"data/*.jsonl"``, or a list of these; all but Parquet may end in ``.gz``. ``"-"`` is standard input (JSONL or
        text). Or the data itself, see `Dataset.from_records`. A list of texts is one of paths where one of them is there
        or ends like a data file, or where none has a space in it.
    tokenizer : Tokenizer
        Of the model that will be trained (``model.tokenizer``); sequences are cut to that model's context at the latest.
    max_seq_length : int
        Longest sequence in tokens, 2 or more.
    limit : int, optional
        Read at most this many examples; of text files, so many pieces.
    split : str or sequence of str
        Of a folder with files named by splits the one to read: "train", "validation" or "test"; "all" reads every file,
        several names mean the first one that is there. Of a `datasets.DatasetDict`, its split.
    columns : mapping, optional
        Which column is what, as in ``{"prompt": "question", "completion": "answer"}``.
    skip_bad : int
        Leave out up to so many examples that cannot be used; the result's `skipped` lists them.

    Returns
    -------
    Dataset
        Its `files` name what a folder holds besides; data among that is named in a warning.

    Raises
    ------
    DataError
        Naming file and line, or the number of the record.
    """
    _check_tokenizer(tokenizer)
    options: dict[str, Any] = {
        "max_seq_length": max_seq_length, "limit": limit, "columns": columns, "skip_bad": skip_bad,
    }  # fmt: skip
    if is_in_memory(data):
        return load_records(data, tokenizer, split=split, **options)
    files = find_files(data, split)
    if files.leaves_data:
        taken = shorten((file.name for file in files.taken), 3)
        tell(f"data: read {taken} ({files.split}), left out: {files.describe_rest()}")
    return _with_skipped_told(load_files(files, tokenizer, **options))


def load_records(data: Any, tokenizer: Tokenizer, *, split: str | Sequence[str] = "train", **options: Any) -> Dataset:
    """Turn data in memory into samples; see `Dataset.from_records`."""
    _check_tokenizer(tokenizer)
    chosen = of_split(data, split)
    loader = _Loader(Dataset([], source=describe(chosen), tokenizer=tokenizer), tokenizer, **options)
    loader.add_records(read_in_memory(chosen))
    return _with_skipped_told(loader.finish('an iterable of mappings such as {"prompt": "…", "completion": "…"}, or of texts'))


def load_files(files: FoundFiles, tokenizer: Tokenizer, **options: Any) -> Dataset:
    """Turn files that were found into samples; see `load_dataset`."""
    names = [name_of(file) for file in files.taken]
    texts = [file for file in files.taken if kind_of(file) == ".txt"]
    if options.get("columns") is not None and len(texts) == len(files.taken):
        raise ConfigError(f"columns: expected data with columns, got text: {shorten(map(name_of, texts), 2)}; leave them out")
    loader = _Loader(Dataset([], source=shorten(names, 2), files=files, tokenizer=tokenizer), tokenizer, **options)
    for file in files.taken:
        if not loader.wants_more():
            break
        if kind_of(file) == ".txt":
            loader.add_text(file)
        else:
            loader.add_records(read_good_and_bad(file))
    return loader.finish(_FORMS.get(kind_of(files.taken[0]), _FORMS[".jsonl"]))


def _check_tokenizer(tokenizer: Any) -> None:
    if not hasattr(tokenizer, "encode_with_offsets"):
        raise DataError(f"tokenizer: expected a Tokenizer, got a {type(tokenizer).__name__}; a model's is model.tokenizer")


# How a file of each kind looks, for whoever gave an empty one.
_FORMS = {
    ".jsonl": 'one JSON object per line, such as {"prompt": "…", "completion": "…"} or {"messages": [{"role": "user", …}, …]}',
    ".json": 'an array of objects such as [{"prompt": "…", "completion": "…"}, …]',
    ".csv": "a first line with the names of the columns (prompt,completion) and a line for each example",
    ".tsv": "a first line with the names of the columns (prompt, tab, completion) and a line for each example",
    ".parquet": "rows with the columns prompt and completion, or messages",
    ".txt": "text, which is learned as it stands",
}


def _with_skipped_told(dataset: Dataset) -> Dataset:
    if dataset.skipped:
        tell(f"{dataset.source}: {len(dataset.skipped):,} bad examples skipped, the first is {dataset.skipped[0]}")
    return dataset


class _Loader:
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
        self.columns = check_columns(columns) if columns is not None else None
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

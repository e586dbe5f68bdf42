"""From files, or from what is in memory, to a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, shorten
from ..notices import tell
from .dataset import Dataset
from .in_memory import is_in_memory
from .loader import Loader, add_records, check_tokenizer, with_skipped_told
from .records import kind_of, read_good_and_bad
from .splits import FoundFiles, find_files
from .standard_input import name_of

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


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
    check_tokenizer(tokenizer)
    options: dict[str, Any] = {
        "max_seq_length": max_seq_length, "limit": limit, "columns": columns, "skip_bad": skip_bad,
    }  # fmt: skip
    if is_in_memory(data):
        return add_records(Dataset([]), data, tokenizer, split, **options)
    files = find_files(data, split)
    if files.leaves_data:
        taken = shorten((file.name for file in files.taken), 3)
        tell(f"data: read {taken} ({files.split}), left out: {files.describe_rest()}")
    return with_skipped_told(load_files(files, tokenizer, **options))


def load_files(files: FoundFiles, tokenizer: Tokenizer, **options: Any) -> Dataset:
    """Turn files that were found into samples; see `load_dataset`."""
    names = [name_of(file) for file in files.taken]
    texts = [file for file in files.taken if kind_of(file) == ".txt"]
    if options.get("columns") is not None and len(texts) == len(files.taken):
        raise ConfigError(f"columns: expected data with columns, got text: {shorten(map(name_of, texts), 2)}; leave them out")
    loader = Loader(Dataset([], source=shorten(names, 2), files=files, tokenizer=tokenizer), tokenizer, **options)
    for file in files.taken:
        if not loader.wants_more():
            break
        if kind_of(file) == ".txt":
            loader.add_text(file)
        else:
            loader.add_records(read_good_and_bad(file))
    return loader.finish(_FORMS.get(kind_of(files.taken[0]), _FORMS[".jsonl"]))


# How a file of each kind looks, for whoever gave an empty one.
_FORMS = {
    ".jsonl": 'one JSON object per line, such as {"prompt": "…", "completion": "…"} or {"messages": [{"role": "user", …}, …]}',
    ".json": 'an array of objects such as [{"prompt": "…", "completion": "…"}, …]',
    ".csv": "a first line with the names of the columns (prompt,completion) and a line for each example",
    ".tsv": "a first line with the names of the columns (prompt, tab, completion) and a line for each example",
    ".parquet": "rows with the columns prompt and completion, or messages",
    ".txt": "text, which is learned as it stands",
}

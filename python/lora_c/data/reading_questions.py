"""Files to questions: what `load_files` is for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError
from .columns import check_columns, with_columns, with_named_columns
from .questions import Question, choice_question, written_question
from .record_keys import NEEDED
from .records import kind_of, read_good_and_bad
from .splits import FoundFiles
from .standard_input import name_of

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


@dataclass
class Questions:
    """What was read, in its order, and the bad examples that were left out, each by its place and what was wrong."""

    asked: list[Question] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def load_questions(
    files: FoundFiles,
    tokenizer: Tokenizer,
    *,
    with_choices: bool,
    check: Callable[[Question], object] = lambda question: None,
    limit: int | None = None,
    columns: Mapping[str, str] | str | None = None,
    skip_bad: int = 0,
) -> Questions:
    """Read the questions of files that were found.

    Parameters
    ----------
    with_choices : bool
        Whether the answer is one of several that the record has.
    check : callable
        Refuses a question by a `DataError`; it is then a bad example.
    limit, columns, skip_bad
        As for `load_dataset`.

    Raises
    ------
    DataError
        Naming file and line.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: expected at least 1 example, got {limit}; leave it out to read every one")
    names = check_columns(columns) if columns is not None else None
    found = Questions()
    for file in files.taken:
        if kind_of(file) == ".txt":
            got = f"{name_of(file)}, a text; perplexity is the task for texts"
            raise DataError(f"data: expected records with a prompt and what is right (.jsonl, .json, .csv), got {got}")
        for where, record in read_good_and_bad(file):
            if limit is not None and len(found.asked) >= limit:
                return found
            try:
                if isinstance(record, DataError):
                    raise record
                renamed = _renamed(record, names, where)
                question = choice_question(renamed, where) if with_choices else written_question(renamed, tokenizer, where)
                check(question)
            except DataError as error:
                _skip(found, error, skip_bad)
                continue
            found.asked.append(question)
    if not found.asked:
        raise DataError(f"{', '.join(map(name_of, files.taken))}: expected at least one example, got none")
    return found


def _renamed(record: dict[str, Any], columns: dict[str, str] | None, where: str) -> dict[str, Any]:
    if columns is None:
        return record
    try:
        if set(columns) & {key for keys in NEEDED.values() for key in keys} and "choices" not in columns:
            return with_columns(record, columns)[0]
        return with_named_columns(record, columns)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _skip(found: Questions, error: DataError, skip_bad: int) -> None:
    if not skip_bad:
        raise error
    found.skipped.append(str(error))
    if len(found.skipped) > skip_bad:
        raise DataError(
            f"data: expected at most {skip_bad} bad examples (skip_bad), got one more; mend them or allow more; the last is "
            f"{str(error)[:240]}"
        )

"""Which files of a folder are meant: those of one split, found by their names as the package `datasets` and mlx-lm do.

A split's name stands in a file's name between separators (`train.jsonl`, `gsm8k_test.csv`, `train-00000-of-00005.parquet`) or
is the name of a subfolder (`valid/`, `data/train/`). Subfolders of other names are not looked into. Files without a split's
name are training data where no file is named so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, nearest, shorten
from ..files.os_errors import reason
from ..files.regular_file import check_regular
from ..notices import tell
from .globs import expand_pattern
from .records import SUFFIXES, kind_of
from .standard_input import STANDARD_INPUT

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
ALL = "all"
_UNNAMED = ""
_KEYWORDS = {keyword: split for split, keywords in SPLITS.items() for keyword in keywords}
_SEPARATOR = r"[-._ 0-9]"
_IN_NAME = re.compile(rf"(?:^|{_SEPARATOR})({'|'.join(_KEYWORDS)})(?={_SEPARATOR}|$)", re.IGNORECASE)
# Texts and settings that lie beside data and are none.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|notice|copying|copyright|authors|contributors|contributing|changelog|citation|requirements)"
    r"([-_. ].*)?|((dataset|dataset_infos?|dataset_dict|state|config|.*_config|tokenizer|special_tokens_map|added_tokens"
    r"|chat_template|vocab|trainer_state|merge_report|.*\.index)\.json)|merges\.txt|metrics\.jsonl",
    re.IGNORECASE,
)


@dataclass
class FoundFiles:
    """The files that were taken, in the order of their names within each folder, and what was not.

    Attributes
    ----------
    taken : list of Path
        What will be read.
    split : str
        The split that the taken files are, "" where the files were named one by one.
    others : dict
        Split to its files, those that are not taken.
    left_out : list of Path
        What is in no split: data that is named otherwise, texts about the data, and files of other kinds.
    """

    taken: list[Path] = field(default_factory=list)
    split: str = ""
    others: dict[str, list[Path]] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)

    @property
    def leaves_data(self) -> bool:
        """Whether more was left out than texts and settings that lie beside data."""
        return bool(self.others) or any(not _ABOUT.fullmatch(path.name) for path in self.left_out)

    def describe_rest(self) -> str:
        """What was not taken, in one line; "" where there is nothing."""
        parts = [f"{shorten(map(shown, paths), 3)} ({split})" for split, paths in self.others.items()]
        if self.left_out:
            parts.append(f"{shorten((path.name for path in self.left_out), 5)} (in no split)")
        return ", ".join(parts)


def shown(path: Path) -> str:
    """A file by its name, and by that of its folder where that says which split it is of."""
    return f"{path.parent.name}/{path.name}" if _split_in(path.parent.name) and not _split_in(path.name) else path.name


def find_files(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], split: str | Sequence[str] = "train"
) -> FoundFiles:
    """Return the files that are meant: those that are named, and of each folder those of a split.

    Parameters
    ----------
    split : str or sequence of str
        "train", "validation", "test" (or another name that `SPLITS` knows for them), or "all" for every file. Of several,
        the first one that the folder has.

    Raises
    ------
    DataError
        A path does not exist or is no regular file, or a folder has nothing of the split.
    """
    wanted = [_known_split(name) for name in ([split] if isinstance(split, str) else split)]
    found = FoundFiles()
    for path in _meant([paths] if isinstance(paths, (str, os.PathLike)) else paths):
        if path == STANDARD_INPUT:
            if path in found.taken:
                raise DataError("data: expected standard input (-) once, got it twice")
            found.taken.append(path)
            continue
        if os.path.isdir(path):
            _add_folder(path, wanted, found)
            continue
        if not os.path.lexists(path):
            raise DataError(_nowhere(path))
        check_regular(path, DataError)
        found.taken.append(path)
    if not found.taken:
        raise DataError("data: expected at least one file or record, got an empty list")
    _tell_repeated(found.taken)
    return found


def _nowhere(path: Path) -> str:
    """What is said of a path where nothing is; a text with spaces or new lines may have been meant as data."""
    if len(str(path)) > 200 or any(sign.isspace() for sign in path.name):
        texts = "; texts in memory are given to Dataset.from_records"
    else:
        texts = ""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if kind_of(entry) in SUFFIXES]
    except OSError:
        beside = []
    return f"data: expected a file or folder, got {str(path)[:200]!r}, which does not exist{nearest(path.name, beside)}{texts}"


def _tell_repeated(files: Sequence[Path]) -> None:
    """Say which files are read twice, under whatever name, and which lie there packed, too."""
    real = [os.path.realpath(file) for file in files]
    twice = sorted({shown(file) for file, path in zip(files, real, strict=True) if real.count(path) > 1})
    packed = sorted(shown(file) for file, path in zip(files, real, strict=True) if path.endswith(".gz") and path[:-3] in real)
    if twice:
        tell(f"data: {shorten(twice)} is given more than once: its examples are read as often")
    if packed:
        tell(f"data: {shorten(packed)} is read beside the file of the same name without .gz: are its examples the same?")


def _meant(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Paths, with patterns and ~ expanded; a file that is named - is known by its absolute path."""
    for path in paths:
        if os.fspath(path) == str(STANDARD_INPUT):
            yield STANDARD_INPUT
            continue
        for match in map(Path, expand_pattern(str(path))):
            yield match.absolute() if match == STANDARD_INPUT else match


def _known_split(name: str) -> str:
    split = name if name == ALL else _KEYWORDS.get(name.lower())
    if split is None:
        raise DataError(f"split: expected {', '.join(SPLITS)} or {ALL}, got {name!r}{nearest(name, [*_KEYWORDS, ALL])}")
    return split


def _add_folder(folder: Path, wanted: Sequence[str], found: FoundFiles) -> None:
    by_split: dict[str, list[Path]] = {}
    for path, split in _files_in(folder, _UNNAMED, ()):
        if split is None:
            found.left_out.append(path)
        else:
            check_regular(path, DataError)
            by_split.setdefault(split, []).append(path)
    if not by_split:
        inside = shorten(path.name for path in found.left_out) or "nothing"
        raise DataError(f"data: expected files ending in {', '.join(SUFFIXES)} in {str(folder)!r}, got {inside}")
    unnamed = by_split.pop(_UNNAMED, [])
    if "train" not in by_split and unnamed:
        by_split["train"], unnamed = unnamed, []
    found.split = next((name for name in wanted if name in by_split or name == ALL), "")
    if found.split == ALL:
        found.taken += sorted(sum(by_split.values(), unnamed))
    elif found.split:
        found.taken += by_split.pop(found.split)
        found.left_out = unnamed + found.left_out  # data first, for whoever reads only the first names
        for other, paths in by_split.items():
            found.others.setdefault(other, []).extend(paths)
    else:
        names = shorten(path.name for paths in by_split.values() for path in paths)
        raise DataError(
            f"data: expected files of the split {' or '.join(wanted)} in {str(folder)!r}, got only {' and '.join(by_split)} "
            f"({names}); give the files themselves"
        )


def _files_in(folder: Path, split: str, inside: tuple[Path, ...]) -> Iterator[tuple[Path, str | None]]:
    """(path, its split) of all that is not hidden, in the order of the names; None for what is no data."""
    here = folder.resolve()
    if here in inside:  # a link to a folder that it lies in
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: expected a folder that can be read, got: {reason(error)}") from None
    for path in paths:
        if path.name.startswith("."):
            continue
        named = split or _split_in(path.name)
        if path.is_dir():
            if named or path.name.lower() == "data":
                yield from _files_in(path, named, (*inside, here))
            else:
                yield path, None
        elif kind_of(path) not in SUFFIXES or _ABOUT.fullmatch(path.name):
            yield path, None
        else:
            yield path, named


def _split_in(name: str) -> str:
    found = _IN_NAME.search(name)
    return _KEYWORDS[found[1].lower()] if found else _UNNAMED

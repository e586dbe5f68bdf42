"""Which labels training data has: their names, sorted, or how many there are, before a classifier is made for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from ..errors import DataError
from ..families.labels import MOST_LABELS, PROBLEM_TYPES, Labels
from .columns import check_columns
from .in_memory import is_in_memory, of_split, read_in_memory
from .known_columns import way_out_of_labelled
from .label_values import real_number, whole_number
from .record_keys import keys_of
from .records import kind_of, read_good_and_bad
from .splits import find_files
from .standard_input import STANDARD_INPUT, name_of


@dataclass
class _Found:
    """What labels have been seen, each kind with the place of the first."""

    places: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    most: int = -1
    lengths: set[int] = field(default_factory=set)
    only_marks: bool = True  # every list of numbers has nothing but 0 and 1

    def see(self, label: Any, where: str) -> None:
        """One label of a record."""
        if isinstance(label, (list, tuple, np.ndarray)):
            self._see_list(list(label), where)
        elif isinstance(label, str) and whole_number(label) is None and real_number(label) is None:
            self._note("names", where)
            self.names.add(label)
        elif (number := whole_number(label)) is not None:
            self._note("numbers in texts" if isinstance(label, str) else "numbers", where)
            self.names.add(str(label))
            self.most = max(self.most, number)
            if number < 0:
                self._note("decimals", where)
        elif real_number(label) is not None:
            self._note("decimals", where)
            self.names.add(str(label))
        else:
            raise DataError(f"{where}: expected 'label' to be a name, a number or a list of them, got {label!r:.60}")

    def _see_list(self, label: list[Any], where: str) -> None:
        if all(isinstance(item, str) for item in label):
            self._note("lists of names", where)
            self.names.update(label)
            return
        values = [real_number(item) for item in label]
        if None in values:
            raise DataError(f"{where}: expected 'label' to be a list of names or of numbers, got {label!r:.60}")
        self._note("lists of numbers", where)
        self.lengths.add(len(values))
        self.only_marks &= set(values) <= {0.0, 1.0}

    def _note(self, kind: str, where: str) -> None:
        self.places.setdefault(kind, where)


def find_labels(
    data: Any, *, columns: Mapping[str, str] | str | None = None, split: str | Sequence[str] = "train",
    problem_type: str | None = None, limit: int | None = None, skip_bad: int = 0,
) -> Labels:  # fmt: skip
    """Return the labels of training data, for `load_model(path, task_type="SEQ_CLS", id2label=…)`.

    Parameters
    ----------
    data : path, list of paths, or iterable of mappings
        As `load_dataset` takes it; what can be read only once is used up.
    columns : mapping, optional
        Which column is what, as in ``{"text": "sentence", "label": "class"}``.
    split : str or sequence of str
        Of a folder, as in `load_dataset`.
    problem_type : str, optional
        By default names and whole numbers are labels of which each text has one, other numbers are values (regression), and
        lists of names, or of 0 and 1, are labels of which a text can have several.
    limit : int, optional
        Look at so many records.
    skip_bad : int
        Pass over records without a usable label, as `load_dataset` will.

    Returns
    -------
    Labels
        Names in the order of the alphabet; numbers are those of the labels, from 0 on.

    Raises
    ------
    DataError
        A record has no label, labels are of several kinds, or there is one alone.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise DataError(f"problem_type: expected one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r:.60}")
    found = _Found()
    source = check_columns(columns).get("label", "label") if columns is not None else "label"
    for i, (where, record) in enumerate(_items(data, split)):
        if limit is not None and i >= limit:
            break
        try:
            found.see(_label_of(record, source, where), where)
        except DataError:
            if not skip_bad:
                raise
    return _labels(found, problem_type)


def _items(data: Any, split: str | Sequence[str]) -> Iterator[tuple[str, Any]]:
    if is_in_memory(data):
        return iter(read_in_memory(of_split(data, split)))
    files = find_files(data, split).taken
    once = next((file for file in files if file == STANDARD_INPUT), None)
    if once is not None:
        raise DataError(
            "data: expected files, which can be read twice, to find their labels, got standard input; name the labels"
        )
    text = next((file for file in files if kind_of(file) == ".txt"), None)
    if text is not None:
        raise DataError(f"{name_of(text)}: expected records with 'text' and 'label', got a text file; write JSONL or CSV")
    return chain.from_iterable(map(read_good_and_bad, files))


def _label_of(record: Any, source: str, where: str) -> Any:
    if isinstance(record, DataError):
        raise record
    label = record.get(source)
    if label is None or (isinstance(label, str) and not label):
        got = "nothing" if source in record else f"the keys {keys_of(record)}{way_out_of_labelled(record)}"
        raise DataError(f"{where}: expected {source!r} to say what the text is, got {got}")
    return label


def _labels(found: _Found, problem_type: Any) -> Labels:
    kinds = set(found.places)
    if not kinds:
        raise DataError("data: expected at least one record with a label, got none")
    _check_problem(found.places, problem_type)
    if kinds == {"lists of names"}:
        return Labels(_sorted(found), problem_type or "multi_label_classification")
    if kinds == {"lists of numbers"}:
        if len(found.lengths) > 1:
            got = " and ".join(map(str, sorted(found.lengths)[:2]))
            raise DataError(f"data: expected lists of one length as labels, got some of {got} numbers")
        default = "multi_label_classification" if found.only_marks else "regression"
        return Labels.numbered(found.lengths.pop(), problem_type or default)  # type: ignore[arg-type]
    if kinds <= {"numbers", "numbers in texts", "decimals"}:
        return _numbers(found, problem_type)
    if kinds <= {"names", "numbers in texts"}:
        return Labels(_sorted(found), problem_type or "single_label_classification")
    raise _mixed(found.places)


# What labels of each problem may be.
_KINDS = {
    "single_label_classification": {"names", "numbers", "numbers in texts"},
    "regression": {"numbers", "numbers in texts", "decimals", "lists of numbers"},
    "multi_label_classification": {"lists of names", "lists of numbers"},
}


def _check_problem(places: Mapping[str, str], problem_type: str | None) -> None:
    allowed = _KINDS.get(problem_type or "", set(places))
    other = next((kind for kind in places if kind not in allowed), None)
    if other is not None:
        listed = ", ".join(sorted(allowed))
        raise DataError(
            f"{places[other]}: expected labels of {problem_type} ({listed}), got {other}; give another problem_type"
        )


def _numbers(found: _Found, problem_type: Any) -> Labels:
    if problem_type == "regression" or (problem_type is None and "decimals" in found.places):
        return Labels.numbered(1, "regression")
    if not 1 <= found.most < MOST_LABELS:
        raise DataError(
            f"data: expected labels of two kinds or more, numbered from 0 to {MOST_LABELS - 1:,} at most, got {found.most} as "
            "the largest; give num_labels, or problem_type regression where they are values"
        )
    return Labels.numbered(found.most + 1, problem_type)


def _sorted(found: _Found) -> tuple[str, ...]:
    if len(found.names) < 2:
        raise DataError(f"data: expected two labels or more, got {', '.join(found.names) or 'none'} alone; name them all")
    return tuple(sorted(found.names))


def _mixed(places: Mapping[str, str]) -> DataError:
    listed: Iterable[str] = (f"{kind} ({where})" for kind, where in places.items())
    return DataError(f"data: expected labels of one kind, got {' and '.join(listed)}; write them alike")

"""What a record says of its text: the number of a label, or values, as a classifier's loss takes them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError, nearest, shorten
from ..families.labels import Labels

_MOST = float(np.finfo(np.float32).max)
_WHOLE = re.compile(r"[+-]?\d{1,18}")


def label_value(given: Any, labels: Labels) -> Any:
    """Return a label as a `Sample` has it: an int, or a float32 array (num_labels,).

    Raises
    ------
    DataError
        It is none of the classifier's.
    """
    if given is None or (isinstance(given, str) and not given):
        raise DataError("expected 'label' to say what the text is, got nothing")
    if labels.problem_type == "single_label_classification":
        return _number_of(given, labels)
    if labels.problem_type == "regression":
        return _values(given if _is_list(given) else [given], labels)
    return _marks(given, labels)


def whole_number(given: Any) -> int | None:
    """The whole number that something is, or that a text writes, as tables do; None: it is none."""
    if isinstance(given, str):
        return int(given) if _WHOLE.fullmatch(given.strip()) else None
    return None if isinstance(given, (bool, np.bool_)) or not hasattr(given, "__index__") else operator.index(given)


def real_number(given: Any) -> float | None:
    """The same for a number of any kind; None also for what is not finite."""
    if isinstance(given, (bool, np.bool_)):
        return None
    try:
        value = float(given) if isinstance(given, (str, int, float, np.number)) else math.nan
    except (ValueError, OverflowError):
        return None
    return value if abs(value) <= _MOST else None  # NaN is not


def _is_list(given: Any) -> bool:
    return isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, (str, bytes))


def _number_of(given: Any, labels: Labels) -> int:
    """A name, or the number of one; a text that is both is the name."""
    if isinstance(given, str) and given in labels.names:
        return labels.names.index(given)
    number = whole_number(given)
    if number is not None and 0 <= number < len(labels):
        return number
    names = shorten(labels.names, 6)
    hint = nearest(given, labels.names) if isinstance(given, str) and number is None else ""
    raise DataError(f"expected 'label' to be one of {names} or its number, 0 to {len(labels) - 1}, got {_shown(given)}{hint}")


def _values(given: Sequence[Any], labels: Labels) -> Any:
    values = [real_number(value) for value in given]
    if len(values) != len(labels) or None in values:
        wanted = "a finite number" if len(labels) == 1 else f"a list of {len(labels)} finite numbers"
        raise DataError(f"expected 'label' to be {wanted} (problem_type regression), got {_shown(given)}")
    return np.asarray(values, np.float32)


def _marks(given: Any, labels: Labels) -> Any:
    """1 for each label that holds: a list of names, or of a 0 or 1 for each."""
    if not _is_list(given):
        raise DataError(
            f"expected 'label' to be a list of names, or of {len(labels)} numbers from 0 to 1 (multi_label_classification), "
            f"got {_shown(given)}"
        )
    marks = np.zeros(len(labels), np.float32)
    if all(isinstance(name, str) for name in given):
        for name in given:
            if name not in labels.names:
                hint = nearest(name, labels.names)
                raise DataError(f"expected 'label' to name {shorten(labels.names, 6)}, got {name[:60]!r}{hint}")
            marks[labels.names.index(name)] = 1
        return marks
    values = [real_number(value) for value in given]
    if len(values) != len(labels) or not all(value is not None and 0 <= value <= 1 for value in values):
        raise DataError(
            f"expected 'label' to be a list of {len(labels)} numbers from 0 to 1, or of names, got {_shown(given)}"
        )
    marks[:] = values
    return marks


def _shown(given: Any) -> str:
    return f"{given!r}"[:60]

"""Texts with labels, for classifiers. A record is one of

    {"text": str, "label": …}                       what `label` may be says `label_values.py`
    {"text": str, "text_pair": str, "label": …}     two texts, which the tokenizer puts together

A text becomes the tokens that the tokenizer makes of it, with those that it puts around one by itself and no others. The last
token is what the classifier reads, so a long text is cut as transformers cuts it: words are left out at the end of the text,
before the tokens that the tokenizer puts there; of a pair the longer one loses its end first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..text.sequences import sequence_ids
from .known_columns import way_out_of_labelled
from .label_values import label_value
from .record_keys import keys_of
from .samples import Sample

if TYPE_CHECKING:
    from ..families.labels import Labels
    from ..text.tokenizer import Tokenizer

_OTHER_KINDS = ("messages", "conversations", "completion", "output")


def labelled_sample(
    record: Mapping[str, Any], tokenizer: Tokenizer, labels: Labels, length: int, where: str = ""
) -> tuple[Sample, bool]:
    """Return the sample of a record, and whether its text was cut to `length` tokens.

    Raises
    ------
    DataError
        It is no text with a label of this classifier; the message begins with `where`.
    """
    try:
        text, pair = texts_of(record)
        if "label" not in record:
            raise DataError(f"expected 'label' beside 'text', got the keys {keys_of(record)}{way_out_of_labelled(record)}")
        label = label_value(record["label"], labels)
        ids, cut = sequence_ids(tokenizer, text, pair, length)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return Sample(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32), where, label=label), cut


def texts_of(record: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text of a record, and the second one where it has a pair.

    Raises
    ------
    DataError
        It has none.
    """
    text, pair = record.get("text"), record.get("text_pair")
    if not isinstance(text, str):
        other = next((key for key in _OTHER_KINDS if key in record), None)
        got = f"a {type(text).__name__}" if "text" in record else f"the keys {keys_of(record)}"
        way_out = f"; a classifier learns labels, and {other!r} is for a language model" if other is not None else ""
        raise DataError(f"expected 'text' to be a string, got {got}{way_out or way_out_of_labelled(record)}")
    if pair is not None and not isinstance(pair, str):
        raise DataError(f"expected 'text_pair' to be a string, got a {type(pair).__name__}")
    return text, pair

"""Samples as the model sees them, the tokens with loss in colour: for terminals, pipes and notebooks.

Where there is no colour, what carries loss stands between ⟦ and ⟧ ([[ and ]] where a terminal has no such signs).
"""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from ..errors import DataError
from .samples import Sample

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer
    from .dataset import Dataset

MOST_TOKENS = 160  # of a run of tokens; of a longer one the first and the last are shown
LOSS_STYLE = "bold green"
_HTML_LOSS = "background:rgba(46,160,67,.25);border-radius:2px;font-weight:600"
_CONTROLS = {number: repr(chr(number))[1:-1] for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"}


@dataclass(frozen=True)
class Piece:
    """Text of tokens that follow each other, and whether they carry loss; None: text that stands for what is not shown."""

    text: str
    loss: bool | None


@dataclass(frozen=True)
class ShownSample:
    """A sample as pieces of text."""

    title: str
    pieces: tuple[Piece, ...]


def show(dataset: Dataset, n: int = 3, tokenizer: Tokenizer | None = None) -> None:
    """See `Dataset.show`."""
    shown = Shown(tuple(shown_samples(dataset, n, tokenizer)))
    if _in_notebook():
        from IPython.display import display

        display(shown)  # type: ignore[no-untyped-call]
    else:
        shown.print(sys.stdout)


def shown_samples(dataset: Dataset, n: int, tokenizer: Tokenizer | None = None) -> Iterator[ShownSample]:
    """Yield the first samples as text.

    Raises
    ------
    DataError
        There is no tokenizer to write them with, or the number is none.
    """
    tokenizer = tokenizer or dataset.tokenizer
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise DataError(f"n: expected a number of samples, 0 or more, got {n!r}")
    if tokenizer is None:
        raise DataError("tokenizer: expected one to write the samples with, got none; data.show(3, model.tokenizer)")
    for i, sample in enumerate(dataset.samples[:n], 1):
        place = sample.where or f"sample {i}"
        what = f"{sample.n_predicted:,} with loss" if sample.label is None else f"label {_label_of(sample, tokenizer)}"
        title = f"{i} of {len(dataset):,}  {place}  {len(sample):,} tokens, {what}"
        yield ShownSample(title, tuple(pieces_of(sample, tokenizer)))


def _label_of(sample: Sample, tokenizer: Tokenizer) -> str:
    """A label by its name, or values."""
    labels = getattr(tokenizer, "model_labels", None)
    if np.ndim(sample.label) == 0:
        return labels.names[sample.label] if labels is not None else str(sample.label)
    if labels is not None and labels.problem_type == "multi_label_classification":
        return ", ".join(name for name, value in zip(labels.names, sample.label, strict=True) if value >= 0.5) or "none"
    return ", ".join(f"{value:g}" for value in np.asarray(sample.label))


def pieces_of(sample: Sample, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield the text of a sample in runs of tokens with and without loss; the middle of a long run is left out."""
    carries = np.asarray(sample.loss_mask) > 0
    carries[:1] = False  # the first token is never predicted
    decoder = tokenizer.stream_decoder(skip_special_tokens=False)
    texts = [decoder.push(int(token)) for token in sample.input_ids]
    if texts:
        texts[-1] += decoder.flush()
    for loss, run in groupby(range(len(texts)), lambda i: bool(carries[i]) and not sample.empty):
        places = list(run)
        if len(places) <= MOST_TOKENS:
            yield Piece("".join(texts[i] for i in places), loss)
            continue
        half = MOST_TOKENS // 2
        yield Piece("".join(texts[i] for i in places[:half]), loss)
        yield Piece(f" … {len(places) - MOST_TOKENS:,} more tokens … ", None)
        yield Piece("".join(texts[i] for i in places[-half:]), loss)


@dataclass(frozen=True)
class Shown:
    """Samples to look at; a notebook shows them as HTML."""

    samples: tuple[ShownSample, ...]

    def __repr__(self) -> str:
        return "\n".join(_marked(self.samples, ("⟦", "⟧"))).rstrip("\n")

    def _repr_html_(self) -> str:
        return "".join(map(_html, self.samples))

    def print(self, file: TextIO, force_colour: bool | None = None) -> None:
        """Write them in colour where the file is a terminal that has some, else with marks."""
        if not (has_colour(file) if force_colour is None else force_colour):
            for line in _marked(self.samples, marks_for(file)):
                print(line, file=file)
            return
        from rich.text import Text

        from ..display.console import TextConsole

        console = TextConsole(file=file, force_terminal=True)  # a terminal would break lines inside of words and numbers
        for sample in self.samples:
            console.print(Text(sample.title, "bold"))
            text = Text()
            for piece in sample.pieces:
                text.append(visible(piece.text), LOSS_STYLE if piece.loss else "dim" if piece.loss is None else "")
            console.print(text, end="\n\n")


def has_colour(file: TextIO) -> bool:
    """Whether a file is a terminal that shows colours, and nobody asked for none (NO_COLOR)."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def marks_for(file: TextIO) -> tuple[str, str]:
    """What stands around text with loss where there is no colour."""
    try:
        "⟦⟧".encode(getattr(file, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "[[", "]]"
    return "⟦", "⟧"


def visible(text: str) -> str:
    """Text whose control characters, which a terminal would obey, are written as their numbers."""
    return text.translate(_CONTROLS)


def _marked(samples: tuple[ShownSample, ...], marks: tuple[str, str]) -> Iterator[str]:
    for sample in samples:
        yield sample.title
        yield "".join(
            f"{marks[0]}{visible(piece.text)}{marks[1]}" if piece.loss else visible(piece.text) for piece in sample.pieces
        )
        yield ""


def _html(sample: ShownSample) -> str:
    texts = ((html.escape(visible(piece.text)), piece.loss) for piece in sample.pieces)
    text = "".join(f"<span style='{_HTML_LOSS}'>{text}</span>" if loss else text for text, loss in texts)
    return f"<div><b>{html.escape(sample.title)}</b><pre style='white-space:pre-wrap'>{text}</pre></div>"


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; IPython in a terminal is none."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")

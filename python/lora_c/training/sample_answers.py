"""Answers to a few held-out prompts before and after training: what a loss does not show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..configs import GenerationConfig
from ..generation.answers import generate_text

if TYPE_CHECKING:
    from ..data import Dataset, Sample
    from ..model.model import Model

_MOST_TOKENS, _MOST_SECONDS = 32, 1.0  # of an answer
_LOOKED_AT = 1000  # samples


@dataclass
class SampleAnswer:
    """A held-out prompt with the answer of the data and those of the model."""

    ids: list[int]
    prompt: str
    expected: str
    before: str | None = None
    after: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {"prompt": self.prompt, "expected": self.expected, "before": self.before, "after": self.after}


def choose_prompts(model: Model, data: Dataset | None, count: int) -> list[SampleAnswer]:
    """The first samples that have a prompt that leaves room for an answer; plain texts have none."""
    found: list[SampleAnswer] = []
    for sample in data.samples[:_LOOKED_AT] if data is not None and model.has_tokenizer else []:
        if len(found) >= count:
            break
        answer = _of(model, sample)
        if answer is not None and answer.prompt not in [other.prompt for other in found]:
            found.append(answer)
    return found


def _of(model: Model, sample: Sample) -> SampleAnswer | None:
    learned = np.flatnonzero(sample.loss_mask)
    if not len(learned) or learned[0] == 0 or learned[0] + _MOST_TOKENS > model.context_length:
        return None
    begin = int(learned[0])
    end = begin + int(np.argmin(np.append(sample.loss_mask[begin:], 0)))
    ids = [int(token) for token in sample.input_ids]
    prompt = model.tokenizer.decode(ids[:begin])
    if not prompt.strip():  # only what begins every text
        return None
    return SampleAnswer(ids[:begin], prompt, model.tokenizer.decode(ids[begin:end]))


def answer_of(model: Model, sample: SampleAnswer, stopped: Callable[[], bool] = lambda: False) -> str:
    """The model's answer, greedy; cut with … where it takes longer than a sample is worth."""
    text, until = "", time.monotonic() + _MOST_SECONDS
    for piece in generate_text(model, sample.ids, GenerationConfig(max_new_tokens=_MOST_TOKENS)):
        text += piece
        if stopped() or time.monotonic() > until:
            return text + "…"
    return text


def in_one_line(text: str, width: int, end: bool = False) -> str:
    """A text without line breaks; of a long one its begin, or its end."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    return "…" + line[1 - width :] if end else line[: width - 1] + "…"

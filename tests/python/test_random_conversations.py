"""Token ids and loss masks of random conversations, over real chat templates with and without {% generation %}.

Golden values are transformers' (tests/golden/make_conversation_golden.py): ids of the render and return_assistant_tokens_mask.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_c.data import Sample, samples_from_record
from lora_c.errors import DataError
from lora_c.text.tokenizer import Tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(FOLDER))
from random_conversations import N_CONVERSATIONS, conversation, digest, make_byte_level, tagged  # noqa: E402

GOLDEN: dict[str, dict[str, list[str | None]]] = json.loads((FOLDER / "conversation_golden.json").read_text(encoding="utf-8"))
NAMES = sorted(GOLDEN["byte_level"])
ENDS = {  # what ends a turn
    "Qwen-Qwen2.5-7B-Instruct": "<|im_end|>\n",
    "google-gemma-2-2b-it": "<end_of_turn>\n",
    "meta-llama-Llama-3.2-3B-Instruct": "<|eot_id|>",
    "microsoft-Phi-3.5-mini-instruct": "<|end|>\n",
    "mistralai-Mistral-Nemo-Instruct-2407": "</s>",
}


@lru_cache(maxsize=2)
def _byte_level() -> Any:
    return make_byte_level()


def tokenizer_of(kind: str, template: str, shared_data: Any) -> Tokenizer:
    if kind == "byte_level":
        return Tokenizer(_byte_level(), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, template)
    tokenizer = Tokenizer.from_folder(shared_data("stories260K_hf"))
    tokenizer.chat_template = template
    return tokenizer


def samples(record: dict[str, Any], tokenizer: Tokenizer) -> list[Sample] | None:
    try:
        return samples_from_record(record, tokenizer, "here", Counter())
    except DataError:
        return None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", sorted(GOLDEN))
def test_ids_and_masks_are_those_of_transformers_and_of_the_untagged_template(shared_data, kind: str, name: str) -> None:
    source = (shared_data("chat_templates") / f"{name}.jinja").read_text(encoding="utf-8")
    with_tags = tokenizer_of(kind, tagged(name, source), shared_data)
    plain = tokenizer_of(kind, source.replace('strftime_now("%d %b %Y")', '"26 Jul 2024"'), shared_data)
    n_compared = n_apart = 0
    for seed, expected in enumerate(GOLDEN[kind][name]):
        record = conversation(seed)
        believed, found = samples(record, with_tags), samples(record, plain)
        assert (believed is None) == (expected is None), seed
        if believed is None:
            assert found is None, seed
            continue
        assert len(believed) == 1 and found is not None, seed
        ids, mask = believed[0].input_ids.tolist(), believed[0].loss_mask.tolist()
        assert digest(ids, mask) == expected, seed
        if len(found) == 1 and np.array_equal(found[0].input_ids, believed[0].input_ids):
            assert np.array_equal(found[0].loss_mask, believed[0].loss_mask), seed
            n_compared += 1
        else:  # the template moves the system message: each turn has the prompt that the model will see, and the same answer
            assert [learned(s, plain) for s in found] == stretches(believed[0], plain), seed
            n_apart += 1
    assert n_compared > 250 and (n_apart == 0 or name.startswith("mistral")) and len(GOLDEN[kind][name]) == N_CONVERSATIONS


@pytest.mark.parametrize("name", NAMES)
def test_every_turn_has_one_end_that_carries_loss(shared_data, name: str) -> None:
    source = (shared_data("chat_templates") / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_of("byte_level", source, shared_data)
    n_turns = 0
    for seed in range(150):
        record = conversation(seed)
        found = samples(record, tokenizer) or []
        answers = [text for sample in found for text in stretches(sample, tokenizer)]
        if found:
            assert len(answers) == sum(m["role"] == "assistant" for m in record["messages"]), seed
        for text in answers:
            assert text.count(ENDS[name]) == 1 and text.removesuffix("</s>").endswith(ENDS[name].removesuffix("</s>")), text
        n_turns += len(answers)
        assert all(s.input_ids.tolist().count(tokenizer.bos_token_id) <= 1 for s in found)
    assert n_turns > 150


def learned(sample: Sample, tokenizer: Tokenizer) -> str:
    (text,) = stretches(sample, tokenizer)
    return text


def stretches(sample: Sample, tokenizer: Tokenizer) -> list[str]:
    """Texts with loss, one per stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.loss_mask, [0]])))
    return [
        tokenizer.decode(sample.input_ids[begin:end].tolist(), skip_special_tokens=False)
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]

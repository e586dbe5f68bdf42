"""Classifiers both ways between lora-c and transformers or PEFT: adapters, merged folders, folders without an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from peer_models import IDS, close, peer_logits

import lora_c as lc

TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 96, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
BASES = {
    "llama": transformers.LlamaConfig(**TINY),
    "qwen3": transformers.Qwen3Config(**TINY, head_dim=8, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=64, initializer_range=0.2, pad_token_id=0
    ),
}
PROBLEMS = {
    "single_label_classification": ["no", "yes", "maybe"],
    "regression": ["value"],
    "multi_label_classification": ["short", "loud", "late", "new"],
}


TEXTS = (IDS, IDS[:9], IDS[5:25], IDS[20:22])


@pytest.fixture
def language_model(tmp_path: Path):
    """Save a small random language model of a family."""

    def make(family: str) -> Path:
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(BASES[family]).eval().save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return make


def ours(base: Path, problem: str, **options: Any) -> lc.Model:
    labels = {"id2label": PROBLEMS[problem], "problem_type": problem}
    return lc.load_model(base, task_type="SEQ_CLS", **labels, **options)


def moved(model: lc.Model) -> np.ndarray:
    rng = np.random.default_rng(0)
    for parameter in model.trainable_parameters():
        parameter.data[...] += 0.05 * rng.standard_normal(parameter.shape)
    return scores(model)


def scores(model: lc.Model) -> np.ndarray:
    """(texts, labels), of texts of several lengths."""
    starts = np.append(0, np.cumsum([len(text) for text in TEXTS])).astype(np.int32)
    return model.decoder.last_logits(np.concatenate(TEXTS), starts)


def scores_there(model: torch.nn.Module) -> np.ndarray:
    return np.stack([peer_logits(model, text) for text in TEXTS])


def classifier_there(folder: Path, **options: Any) -> torch.nn.Module:
    loaded, found = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not found["unexpected_keys"] or options
    assert not found["missing_keys"] or options
    return loaded.eval()


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("family", BASES)
def test_an_adapter_there_and_back(language_model, tmp_path: Path, family: str, problem: str) -> None:
    base = language_model(family)
    model = ours(base, problem)
    model.add_adapter(lc.LoraConfig(r=4, lora_alpha=6, task_type="SEQ_CLS"))
    expected = moved(model)
    model.save_adapter(tmp_path / "ours")
    blank = classifier_there(base, num_labels=len(PROBLEMS[problem]), problem_type=problem)
    theirs = peft.PeftModel.from_pretrained(blank, tmp_path / "ours").eval()
    close(scores_there(theirs), expected, 1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = ours(base, problem)
    again.load_adapter(tmp_path / "theirs")
    close(scores(again), expected, 1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("family", BASES)
def test_a_merged_classifier_there(language_model, tmp_path: Path, family: str, problem: str) -> None:
    model = ours(language_model(family), problem)
    model.add_adapter(lc.LoraConfig(r=4, use_dora=True, task_type="SEQ_CLS"))
    expected = moved(model)
    model.merge().save(tmp_path / "merged")
    check_folder(tmp_path / "merged", problem, expected)


@pytest.mark.parametrize("trainable", ["head", "full"])
@pytest.mark.parametrize("family", BASES)
def test_a_folder_without_an_adapter_there(language_model, tmp_path: Path, family: str, trainable: str) -> None:
    problem = "single_label_classification"
    model = ours(language_model(family), problem, trainable=trainable)
    expected = moved(model)
    model.save(tmp_path / "saved")
    check_folder(tmp_path / "saved", problem, expected)


def check_folder(folder: Path, problem: str, expected: np.ndarray) -> None:
    theirs = classifier_there(folder)
    close(scores_there(theirs), expected, 1e-5)
    assert list(theirs.config.id2label.values()) == PROBLEMS[problem] and theirs.config.problem_type == problem
    theirs.save_pretrained(folder.parent / "theirs")
    close(scores(lc.load_model(folder.parent / "theirs")), expected, 1e-5)

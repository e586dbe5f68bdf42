"""Prompts and prefixes both ways between lora-c and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from peer_models import IDS, close

import lora_c as lc

SMALL = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 96}
KINDS: dict[str, Any] = {
    "prompt": lc.PromptTuningConfig(num_virtual_tokens=5),
    "sampled": lc.PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB"),
    "prefix": lc.PrefixTuningConfig(num_virtual_tokens=4),
    "projection": lc.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7),
}
GPT2 = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=64, initializer_range=0.2)


def last_logits(model: torch.nn.Module) -> np.ndarray:
    """Of the real tokens: PEFT gives those of a prompt, too."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(IDS.astype(np.int64))[None]).logits[0, -len(IDS) :].float().numpy()


def round_trip(base: Path, folder: Path, kind: str) -> None:
    model = lc.load_model(base)
    before = model.decoder.logits(IDS)
    model.add_adapter(KINDS[kind])
    rng = np.random.default_rng(0)
    for parameter in model.trainable_parameters():
        parameter.data[...] += 0.3 * rng.standard_normal(parameter.shape)
    expected = model.decoder.logits(IDS)
    assert np.abs(expected - before).max() > 1e-2 * np.abs(before).max()
    model.save_adapter(folder / "ours")
    there = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(there, folder / "ours").eval()
    close(last_logits(theirs), expected, 1e-5)
    theirs.save_pretrained(folder / "theirs")
    again = lc.load_model(base)
    again.load_adapter(folder / "theirs")
    close(again.decoder.logits(IDS), expected, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_here(llama_folder, tmp_path: Path, kind: str) -> None:
    round_trip(llama_folder(**SMALL), tmp_path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_of_gpt2(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(GPT2).eval().save_pretrained(tmp_path / "base")
    round_trip(tmp_path / "base", tmp_path, kind)

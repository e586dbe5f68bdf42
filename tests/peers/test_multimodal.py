"""The text model of Gemma 3 with images: logits and adapters both ways with transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from peer_models import IDS, TINY, close, peer_logits

import lora_c as lc

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    text = TINY | {"head_dim": 32, "sliding_window": 8, "initializer_range": 0.1}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=VISION,
        mm_tokens_per_image=1,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load_peer(path: Path) -> torch.nn.Module:
    return transformers.Gemma3ForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()


def test_logits_and_adapters_both_ways(folder: Path, tmp_path: Path) -> None:
    model = lc.load_model(folder)
    close(model.decoder.logits(IDS), peer_logits(load_peer(folder)))
    model.add_adapter(lc.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    rng = np.random.default_rng(0)
    for parameter in model.trainable_parameters():
        parameter.data[...] += 0.05 * rng.standard_normal(parameter.shape)
    expected = model.decoder.logits(IDS)
    model.save_adapter(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(load_peer(folder), tmp_path / "ours").eval()
    assert not any("vision" in name and "lora" in name for name, _ in theirs.named_parameters())
    close(peer_logits(theirs), expected, 1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = lc.load_model(folder)
    again.load_adapter(tmp_path / "theirs")
    close(again.decoder.logits(IDS), expected, 1e-5)


def test_their_adapter_with_untrained_parts_for_images(folder: Path, tmp_path: Path) -> None:
    """A list of names also matches the tower for images; trained on texts, its B stays zero."""
    theirs = peft.get_peft_model(load_peer(folder), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name and "language_model" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    model = lc.load_model(folder)
    model.load_adapter(tmp_path / "theirs")
    close(model.decoder.logits(IDS), peer_logits(theirs), 1e-5)


def test_saved_alone_it_is_a_text_model(folder: Path, tmp_path: Path) -> None:
    model = lc.load_model(folder)
    model.save(tmp_path / "text")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32).eval()
    assert type(peer).__name__ == "Gemma3ForCausalLM"
    close(model.decoder.logits(IDS), peer_logits(peer))

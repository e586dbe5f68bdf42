"""Prequantized folders: ours in transformers with bitsandbytes, theirs here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from peer_models import IDS, close, peer_logits

import lora_c as lc


def load_peer(folder: Path, **options: object) -> torch.nn.Module:
    """In training mode, because the inference path of bitsandbytes on CPUs rounds activations and scales to bfloat16."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).train()


def decoded(model: torch.nn.Module, module: str) -> torch.Tensor:
    import bitsandbytes.functional as F

    weight = model.get_submodule(module).weight
    return F.dequantize_4bit(weight.data, weight.quant_state)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("block_size", [64, 128])
def test_our_folder_there(llama_folder, tmp_path: Path, double_quant: bool, block_size: int) -> None:
    model = lc.load_model(llama_folder(), quantize="nf4", double_quant=double_quant, block_size=block_size)
    model.save(tmp_path / "ours")
    theirs = load_peer(tmp_path / "ours")
    ours = model.weights["layers.1.down_proj"].dequantize()
    assert (decoded(theirs, "model.layers.1.mlp.down_proj").numpy() == ours).all()
    close(model.decoder.logits(IDS), peer_logits(theirs))

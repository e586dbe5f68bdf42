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


@pytest.mark.parametrize("double_quant", [True, False])
def test_our_fp4_folder_there(llama_folder, tmp_path: Path, double_quant: bool) -> None:
    """They make the same codes of the same weights, too."""
    model = lc.load_model(llama_folder(), quantize="fp4", double_quant=double_quant)
    model.save(tmp_path / "ours")
    theirs = load_peer(tmp_path / "ours")
    ours = model.weights["layers.1.down_proj"]
    assert (decoded(theirs, "model.layers.1.mlp.down_proj").numpy() == ours.dequantize()).all()
    close(model.decoder.logits(IDS), peer_logits(theirs))
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    made = load_peer(llama_folder(), quantization_config=config).get_submodule("model.layers.1.mlp.down_proj").weight
    assert (made.data.numpy().ravel() == ours.codes).all()


@pytest.mark.parametrize("kind", ["fp4_e2m1", "int4"])
def test_types_of_our_own_are_refused_there(llama_folder, tmp_path: Path, kind: str) -> None:
    model = lc.load_model(llama_folder(), quantize=kind)
    with pytest.warns(lc.notices.LoraCWarning, match="lora-c alone reads this folder"):
        model.save(tmp_path / "ours")
    with pytest.raises(RuntimeError, match="CONVERSION"):
        load_peer(tmp_path / "ours")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
def test_their_folder_here_and_back(llama_folder, tmp_path: Path, kind: str, double_quant: bool, storage: torch.dtype) -> None:
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double_quant, bnb_4bit_quant_storage=storage
    )
    theirs = load_peer(llama_folder(), quantization_config=config)
    theirs.save_pretrained(tmp_path / "theirs")
    model = lc.load_model(tmp_path / "theirs")
    close(model.decoder.logits(IDS), peer_logits(theirs))
    model.save(tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (tmp_path / "theirs/model.safetensors").read_bytes()
    close(peer_logits(load_peer(tmp_path / "back")), peer_logits(theirs), 0)


def test_skipped_modules_both_ways(llama_folder, tmp_path: Path) -> None:
    skipped = ["lm_head", "model.layers.1.mlp.down_proj"]
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped)
    theirs = load_peer(llama_folder(), quantization_config=config)
    theirs.save_pretrained(tmp_path / "theirs")
    model = lc.load_model(tmp_path / "theirs")
    assert not isinstance(model.weights["layers.1.down_proj"], lc.NF4Tensor)
    close(model.decoder.logits(IDS), peer_logits(theirs))
    model.add_adapter(r=2, target_modules=["q_proj"])  # its merge quantizes q_proj again, and so writes the config anew
    model.merge(dtype="nf4").save(tmp_path / "merged")
    close(lc.load_model(tmp_path / "merged").decoder.logits(IDS), peer_logits(load_peer(tmp_path / "merged")))


def test_a_head_in_4_bits(llama_folder, tmp_path: Path) -> None:
    """With an empty list of modules to skip, transformers quantizes the head, too."""
    options = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=[])
    theirs = load_peer(llama_folder(), quantization_config=options)
    theirs.save_pretrained(tmp_path / "theirs")
    model = lc.load_model(tmp_path / "theirs")
    assert isinstance(model.weights["lm_head"], lc.NF4Tensor)
    close(model.decoder.logits(IDS), peer_logits(theirs))
    model.save(tmp_path / "ours")
    again = load_peer(tmp_path / "ours")
    assert (decoded(again, "lm_head").numpy() == model.weights["lm_head"].dequantize()).all()
    close(model.decoder.logits(IDS), peer_logits(again))

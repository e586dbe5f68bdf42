"""Model folders: written by transformers and read here, and the other way round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peer_models import IDS, close, peer_logits, tiny_llama

import lora_c as lc


@pytest.mark.parametrize("tied", [False, True])
def test_their_folder_here(llama_folder, tied: bool) -> None:
    folder = llama_folder(tie_word_embeddings=tied)
    close(lc.load_model(folder).decoder.logits(IDS), peer_logits(tiny_llama(tie_word_embeddings=tied)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_folder_there(llama_folder, tmp_path: Path, dtype: str) -> None:
    """Sharded on purpose; transformers computes from the stored weights in float32."""
    model = lc.load_model(llama_folder())
    model.add_adapter(r=4, lora_alpha=8)
    rng = np.random.default_rng(0)
    for parameter in model.trainable_parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape) * 0.1
    merged = model.merge(dtype=dtype)
    merged.save(tmp_path / "merged", max_shard_bytes=100_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ours = lc.load_model(tmp_path / "merged", dtype="float32")
    close(ours.decoder.logits(IDS), peer_logits(theirs))

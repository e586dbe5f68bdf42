"""Small random models of transformers, and their logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

IDS = np.arange(3, 40, dtype=np.int32)
# Rows are multiples of 128: where a block of 4-bit weights crosses the end of a row, bitsandbytes' AVX-512 decoder takes the
# wrong scales, and its inference path refuses heights that are no multiple of 32.
TINY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 96, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def tiny_llama(**changes: Any) -> transformers.LlamaForCausalLM:
    """A small random Llama of transformers, in float32."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(TINY | {"initializer_range": 0.2} | changes))
    return transformers.LlamaForCausalLM(config).eval()


def peer_logits(model: torch.nn.Module, ids: np.ndarray = IDS) -> np.ndarray:
    """Logits (tokens, vocabulary) of a transformers or PEFT model, in float32."""
    with torch.no_grad():
        return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float().numpy()


def close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Largest difference relative to the largest logit."""
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()

"""What transformers' configuration classes assume where a config.json leaves a key out, in the common names of the keys."""

from __future__ import annotations

from typing import Any


def _sizes(hidden: int, mid: int | None, layers: int, heads: int, kv_heads: int | None, vocab: int, positions: int) -> Any:
    """None: the rule of the family (as many heads of keys as of queries)."""
    return {
        "hidden_size": hidden, "intermediate_size": mid, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": positions, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip


_GEMMA = {"tie_word_embeddings": True, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh"}
_SANDWICH = _GEMMA | {"query_pre_attn_scalar": 256, "sliding_window": 4096}
_QWEN = {"sliding_window": 4096, "max_window_layers": 28}

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _sizes(4096, 11008, 32, 32, None, 32000, 2048),
    "mistral": _sizes(4096, 14336, 32, 32, 8, 32000, 131072) | {"sliding_window": 4096},
    "qwen2": _sizes(4096, 22016, 32, 32, 32, 151936, 32768) | _QWEN,
    "qwen3": _sizes(4096, 22016, 32, 32, 32, 151936, 32768) | _QWEN | {"head_dim": 128},
    "smollm3": _sizes(2048, 11008, 36, 16, 4, 128256, 32768) | {"tie_word_embeddings": True, "rope_theta": 2000000.0},
    "phi3": _sizes(3072, 8192, 32, 32, None, 32064, 4096)
    | {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    "gemma": _sizes(3072, 24576, 28, 16, 16, 256000, 8192) | _GEMMA,
    "gemma2": _sizes(2304, 9216, 26, 8, 4, 256000, 8192)
    | _SANDWICH | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": _sizes(2304, 9216, 26, 8, 4, 262208, 131072)
    | _SANDWICH | {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6},
    "olmo2": _sizes(4096, 11008, 32, 32, None, 50304, 2048) | {"rms_norm_eps": 1e-5},
    "granite": _sizes(4096, 11008, 32, 32, None, 32000, 2048)
    | dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"), 1.0),
    "gpt2": _sizes(768, None, 12, 12, None, 50257, 1024)
    | {"tie_word_embeddings": True, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5},
}  # fmt: skip

# Keys for which null is a value of its own, or none at all, and does not mean the default.
NULL_IS_NOT_DEFAULT = frozenset({
    "sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "num_key_value_heads", "hidden_size",
    "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings",
})  # fmt: skip

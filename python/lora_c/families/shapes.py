"""Models of well-known shapes by name: what their published config.json says of sizes, and where that stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

_HUB = "config.json of {} on the Hugging Face Hub"


@dataclass(frozen=True)
class Shape:
    """A model by its config.json.

    Attributes
    ----------
    config : dict
        What the published config.json says of sizes.
    source : str
        Where that stands.
    head : "bfloat16" or "quantized"
        How a head of its own is kept: as the embedding is, or as the projections are. One that is the embedding is bfloat16.
    """

    config: dict[str, Any]
    source: str
    head: Literal["bfloat16", "quantized"] = "bfloat16"


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, mid: int) -> dict[str, Any]:
    config = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": mid}
    return config | {"num_attention_heads": heads, "num_key_value_heads": kv_heads}


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, mid: int, **more: Any) -> dict[str, Any]:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
    config |= _sizes(hidden, layers, heads, kv_heads, mid) | {"rope_theta": 500000.0, "tie_word_embeddings": False}
    return config | {"vocab_size": 128256, "max_position_embeddings": 131072} | more


def _llama3(factor: float) -> dict[str, Any]:
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_scaling": rope | {"original_max_position_embeddings": 8192}}


def _first_llama(hidden: int, layers: int, heads: int, mid: int) -> Shape:
    more = {"vocab_size": 32000, "max_position_embeddings": 2048, "rope_theta": 10000.0, "rms_norm_eps": 1e-6}
    return Shape(_llama(hidden, layers, heads, heads, mid, **more), "LLaMA, arXiv:2302.13971, table 2")


def _smollm2(size: str, *sizes: int, rope_theta: float = 100000.0) -> Shape:
    more = {"vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": rope_theta, "tie_word_embeddings": True}
    return Shape(_llama(*sizes, **more), _HUB.format(f"HuggingFaceTB/SmolLM2-{size}"))  # type: ignore[misc]


def _qwen3(size: str, *sizes: int, tied: bool = False) -> Shape:
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "rms_norm_eps": 1e-6}
    config |= _sizes(*sizes) | {"head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}
    return Shape(config | {"rope_theta": 1000000, "tie_word_embeddings": tied}, _HUB.format(f"Qwen/Qwen3-{size}"))


def _gpt2(hidden: int, layers: int, heads: int, positions: int = 1024) -> dict[str, Any]:
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new"}
    config |= {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": positions}
    return config | {"vocab_size": 50257, "layer_norm_epsilon": 1e-5}


def _gemma2(size: str, *sizes: int, head_dim: int = 256, scalar: int = 256) -> Shape:
    config = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"}
    config |= _sizes(*sizes) | {"head_dim": head_dim, "query_pre_attn_scalar": scalar, "rms_norm_eps": 1e-6}
    config |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096}
    config |= {"vocab_size": 256000, "max_position_embeddings": 8192, "rope_theta": 10000.0}
    return Shape(config, _HUB.format(f"google/gemma-2-{size}"))


def _gemma3(size: str, *sizes: int, head_dim: int = 256, scalar: int = 256, vocab: int = 262208, window: int = 1024) -> Shape:
    is_long = vocab == 262208  # the models of texts and images, of which this is the text model
    config = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh"}
    config |= _sizes(*sizes) | {"head_dim": head_dim, "query_pre_attn_scalar": scalar, "rms_norm_eps": 1e-6}
    config |= {"vocab_size": vocab, "max_position_embeddings": 131072 if is_long else 32768, "sliding_window": window}
    config |= {"sliding_window_pattern": 6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}
    config |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"} if is_long else None}
    return Shape(config, _HUB.format(f"google/gemma-3-{size}"))


SHAPES: dict[str, Shape] = {
    "gpt2": Shape(_gpt2(768, 12, 12), _HUB.format("openai-community/gpt2")),
    "gpt2-medium": Shape(_gpt2(1024, 24, 16), _HUB.format("openai-community/gpt2-medium")),
    "gpt2-large": Shape(_gpt2(1280, 36, 20), _HUB.format("openai-community/gpt2-large")),
    "gpt2-xl": Shape(_gpt2(1600, 48, 25), _HUB.format("openai-community/gpt2-xl")),
    # In GPT-2's family, which it follows but for the sparse attention of every other layer.
    "gpt3-175b": Shape(_gpt2(12288, 96, 96, positions=2048), "GPT-3, arXiv:2005.14165, table 2.1"),
    "llama-7b": _first_llama(4096, 32, 32, 11008),
    "llama-13b": _first_llama(5120, 40, 40, 13824),
    "llama-33b": _first_llama(6656, 60, 52, 17920),
    "llama-65b": _first_llama(8192, 80, 64, 22016),
    "llama-3.1-8b": Shape(_llama(4096, 32, 32, 8, 14336) | _llama3(8.0), _HUB.format("meta-llama/Llama-3.1-8B")),
    "llama-3.1-70b": Shape(_llama(8192, 80, 64, 8, 28672) | _llama3(8.0), _HUB.format("meta-llama/Llama-3.1-70B")),
    "llama-3.2-1b": Shape(
        _llama(2048, 16, 32, 8, 8192, tie_word_embeddings=True) | _llama3(32.0), _HUB.format("meta-llama/Llama-3.2-1B")
    ),
    "llama-3.2-3b": Shape(
        _llama(3072, 28, 24, 8, 8192, tie_word_embeddings=True) | _llama3(32.0), _HUB.format("meta-llama/Llama-3.2-3B")
    ),
    "qwen3-0.6b": _qwen3("0.6B", 1024, 28, 16, 8, 3072, tied=True),
    "qwen3-1.7b": _qwen3("1.7B", 2048, 28, 16, 8, 6144, tied=True),
    "qwen3-4b": _qwen3("4B", 2560, 36, 32, 8, 9728, tied=True),
    "qwen3-8b": _qwen3("8B", 4096, 36, 32, 8, 12288),
    "qwen3-14b": _qwen3("14B", 5120, 40, 40, 8, 17408),
    "qwen3-32b": _qwen3("32B", 5120, 64, 64, 8, 25600),
    "smollm2-135m": _smollm2("135M", 576, 30, 9, 3, 1536),
    "smollm2-360m": _smollm2("360M", 960, 32, 15, 5, 2560),
    "smollm2-1.7b": _smollm2("1.7B", 2048, 24, 32, 32, 8192, rope_theta=130000.0),
    "gemma-2-2b": _gemma2("2b", 2304, 26, 8, 4, 9216),
    "gemma-2-9b": _gemma2("9b", 3584, 42, 16, 8, 14336),
    "gemma-2-27b": _gemma2("27b", 4608, 46, 32, 16, 36864, head_dim=128, scalar=144),
    "gemma-3-270m": _gemma3("270m", 640, 18, 4, 1, 2048, vocab=262144, window=512),
    "gemma-3-1b": _gemma3("1b-pt", 1152, 26, 4, 1, 6912, vocab=262144, window=512),
    "gemma-3-4b": _gemma3("4b-pt", 2560, 34, 8, 4, 10240),
    "gemma-3-12b": _gemma3("12b-pt", 3840, 48, 16, 8, 15360),
    "gemma-3-27b": _gemma3("27b-pt", 5376, 62, 32, 16, 21504, head_dim=128, scalar=168),
}

"""Model families as data: config.json -> the arguments of `Decoder`, and the names and shapes of its weights.

A family is one row of `FAMILIES`. What a row cannot express is refused by name, never guessed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError, shorten

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = ATTENTION + MLP
MAX_HEAD_DIM = 4096


@dataclass(frozen=True)
class Family:
    """How one family of Llama-like decoders differs from the others.

    biases: projections with a bias, always ("qkv") or as the keys attention_bias and mlp_bias say ("config").
    sliding_window: "never", "always" (where the key is a number) or "switch" (only with use_sliding_window).
    """

    architecture: str
    model_type: str
    biases: Literal["config", "none", "qkv"]
    sliding_window: Literal["never", "always", "switch"] = "never"


FAMILIES = (
    Family("LlamaForCausalLM", "llama", biases="config"),
    Family("MistralForCausalLM", "mistral", biases="none", sliding_window="always"),
    Family("Qwen2ForCausalLM", "qwen2", biases="qkv", sliding_window="switch"),
)


@dataclass(frozen=True)
class WeightSpec:
    """One tensor: its name in the decoder, in the file, and its shape (out, in) or (n,)."""

    name: str
    file_name: str
    shape: tuple[int, ...]
    kind: Literal["projection", "embedding", "head", "vector"]

    @property
    def module(self) -> str:
        """The module path as PEFT spells it, such as model.layers.0.self_attn.q_proj."""
        return self.file_name.rpartition(".")[0]


@dataclass(frozen=True)
class Architecture:
    """A family with the sizes of one model."""

    family: Family
    decoder_kwargs: dict[str, Any]
    biased: tuple[str, ...]

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding matrix."""
        return bool(self.decoder_kwargs["tie_word_embeddings"])

    def weights(self) -> list[WeightSpec]:
        """Every tensor that the decoder needs, in the order of the forward pass."""
        k = self.decoder_kwargs
        hidden, head_dim = k["hidden_size"], k["head_dim"]
        q, kv, mid = k["num_attention_heads"] * head_dim, k["num_key_value_heads"] * head_dim, k["intermediate_size"]
        shapes = {
            "q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q),
            "gate_proj": (mid, hidden), "up_proj": (mid, hidden), "down_proj": (hidden, mid),
        }  # fmt: skip
        out = [WeightSpec("embed_tokens", "model.embed_tokens.weight", (k["vocab_size"], hidden), "embedding")]
        for n in range(k["num_hidden_layers"]):
            layer, file = f"layers.{n}.", f"model.layers.{n}."
            out.append(WeightSpec(layer + "input_layernorm", file + "input_layernorm.weight", (hidden,), "vector"))
            for name in PROJECTIONS:
                if name == "gate_proj":
                    norm = "post_attention_layernorm"
                    out.append(WeightSpec(layer + norm, file + norm + ".weight", (hidden,), "vector"))
                path = file + ("self_attn." if name in ATTENTION else "mlp.") + name
                out.append(WeightSpec(layer + name, path + ".weight", shapes[name], "projection"))
                if name in self.biased:
                    out.append(WeightSpec(f"{layer}{name}.bias", path + ".bias", shapes[name][:1], "vector"))
        out.append(WeightSpec("norm", "model.norm.weight", (hidden,), "vector"))
        if not self.tied:
            out.append(WeightSpec("lm_head", "lm_head.weight", (k["vocab_size"], hidden), "head"))
        return out

    def ignored(self, file_name: str) -> bool:
        """Whether a tensor of a checkpoint carries nothing that this model needs."""
        return file_name.endswith(".rotary_emb.inv_freq") or (self.tied and file_name == "lm_head.weight")


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Read a model's config.json.

    Raises
    ------
    CheckpointError
        The family or a feature is not supported (named, with what is supported), or a size is missing or absurd.
    """
    family = _family(config)
    _refuse_features(config)
    hidden = _size(config, "hidden_size")
    heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", heads)
    head_dim = _size(config, "head_dim", hidden // heads)
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(f"config.json: hidden_size: expected a multiple of num_attention_heads {heads}, got {hidden}")
    if heads % kv_heads:
        raise CheckpointError(f"config.json: num_key_value_heads: expected a divisor of {heads}, got {kv_heads}")
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise CheckpointError(f"config.json: head_dim: expected an even number up to {MAX_HEAD_DIM}, got {head_dim}")
    eps = config.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 <= eps < 1:
        raise CheckpointError(f"config.json: rms_norm_eps: expected a small positive number, got {eps!r}")
    layers, positions = _size(config, "num_hidden_layers"), _size(config, "max_position_embeddings", 2048)
    kwargs = {
        "hidden_size": hidden,
        "intermediate_size": _size(config, "intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": _size(config, "vocab_size"),
        "max_position_embeddings": positions,
        "rms_norm_eps": float(eps),
        "rope_inv_freq": rope_inv_freq(config, head_dim),
        "rope_scale": 1.0,
        "sliding_window": _sliding_window(config, family, layers, positions),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    return Architecture(family, kwargs, _biased(config, family))


def _family(config: Mapping[str, Any]) -> Family:
    names = config.get("architectures") or []
    for family in FAMILIES:
        if names == [family.architecture] or (not names and config.get("model_type") == family.model_type):
            return family
    got = shorten(names) if names else repr(config.get("model_type"))
    known = ", ".join(family.architecture for family in FAMILIES)
    raise CheckpointError(f"config.json: architectures: expected one of {known}, got {got}")


def _refuse_features(config: Mapping[str, Any]) -> None:
    neutral = {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (None, 1, 1.0), "is_encoder_decoder": (None, False)}
    for key, allowed in neutral.items():
        value = config.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(f"config.json: {key}: expected {allowed[0]!r}, got {value!r}; this is not supported")


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"config.json: {key}: expected a positive number, got nothing; is this a model folder?")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise CheckpointError(f"config.json: {key}: expected a positive number below 2^31, got {value!r}")
    return value


def _biased(config: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    if family.biases == "none":
        return ()
    if family.biases == "qkv":
        return ("q_proj", "k_proj", "v_proj")
    attention = ATTENTION if config.get("attention_bias") else ()
    return attention + (MLP if config.get("mlp_bias") else ())


def _sliding_window(config: Mapping[str, Any], family: Family, layers: int, positions: int) -> int:
    """Size of the attention window of all layers; 0 for none. Windows in some layers only are refused."""
    window = config.get("sliding_window")
    kinds = set(config.get("layer_types") or ())
    if family.sliding_window == "never" or window is None or kinds == {"full_attention"}:
        return 0
    if family.sliding_window == "switch" and kinds != {"sliding_attention"}:
        first = config.get("max_window_layers", layers)
        if not config.get("use_sliding_window") or (not kinds and first >= layers):
            return 0
        if kinds or first > 0:
            raise CheckpointError(
                "config.json: use_sliding_window: expected the same attention in all layers, got a window in some of them; "
                "set it to false for texts shorter than the window"
            )
    if len(kinds) > 1:
        raise CheckpointError(f"config.json: layer_types: expected the same kind in all layers, got {shorten(sorted(kinds))}")
    window = _size(config, "sliding_window")
    return 0 if window >= positions else window


def rope_inv_freq(config: Mapping[str, Any], head_dim: int) -> NDArray[np.float64]:
    """Rotation frequencies of the head_dim / 2 pairs, rounded to float32 as the models were trained with.

    Reads both spellings: `rope_theta` with `rope_scaling`, and `rope_parameters`.

    Shapes: (head_dim / 2,)
    Source: RoFormer, arXiv:2104.09864; position interpolation, arXiv:2306.15595; the "llama3" rule of Llama 3.1.
    """
    rope = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    theta = _number(rope | {"rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0))}, "rope_theta")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise CheckpointError(f"config.json: partial_rotary_factor: expected 1, got {rope['partial_rotary_factor']!r}")
    inv_freq: NDArray[np.float64] = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if kind == "linear":
        inv_freq = inv_freq / _number(rope, "factor")
    elif kind == "llama3":
        inv_freq = _llama3(inv_freq, rope)
    elif kind != "default":
        raise CheckpointError(f"config.json: rope_type: expected one of default, linear, llama3, got {kind!r}")
    return inv_freq.astype(np.float32).astype(np.float64)


def _llama3(inv_freq: NDArray[np.float64], rope: Mapping[str, Any]) -> NDArray[np.float64]:
    """Slow rotations are stretched by factor, fast ones kept, those between blended."""
    factor, low, high = (_number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = _number(rope, "original_max_position_embeddings")
    if high <= low:
        raise CheckpointError(f"config.json: high_freq_factor: expected above low_freq_factor {low:g}, got {high:g}")
    turns = old * inv_freq / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    result: NDArray[np.float64] = (1 - blend) * inv_freq / factor + blend * inv_freq
    return result


def _number(table: Mapping[str, Any], key: str) -> float:
    value = table.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"config.json: {key}: expected a positive number, got {value!r}")
    return float(value)

"""Metadata of a GGUF model as the config.json of a model folder, so that `families.architectures` alone reads both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from ..families.table import FAMILIES
from ..notices import tell
from .ends import ends_of, token_id
from .families import GGUFFamily, family_of_arch
from .format import Kind
from .reader import GGUFFile

if TYPE_CHECKING:
    from .same_model import PlannedFile

# Keys under the architecture's name that change nothing here, or nothing with the one value given.
_HARMLESS = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "attention.layer_norm_epsilon"}
# Of these families the rotation is not asked for: there is none.
_WITHOUT_ROPE = ("gpt2",)
_NEUTRAL = {
    "expert_count": 0, "expert_used_count": 0, "use_parallel_residual": False, "attention.causal": True,
    "attention.max_alibi_bias": 0.0, "attention.clamp_kqv": 0.0, "pooling_type": 0,
}  # fmt: skip


class _Metadata:
    """Numbers under the architecture's name; what nobody asked for is refused at the end."""

    def __init__(self, file: GGUFFile | PlannedFile, arch: str) -> None:
        self.file, self.prefix = file, arch + "."
        self.asked: set[str] = set()

    def where(self, key: str) -> str:
        return f"{self.file.path}: {self.prefix}{key}"

    def get(self, key: str, default: Any = None) -> Any:
        """A number or text; a list with one value for all layers counts as that value."""
        self.asked.add(key)
        value = self.file.values.get(self.prefix + key)
        if value is None:
            return default
        data, kind = value.data, value.kind
        if kind is Kind.ARRAY:
            if not isinstance(data, np.ndarray) or data.size == 0 or (data != data[0]).any():
                raise CheckpointError(f"{self.where(key)}: expected the same value for all layers, got several")
            data, kind = data[0].item(), value.item or kind
        if kind is Kind.FLOAT32:  # 1e-5 was meant, not its nearest float32 written out
            data = float(str(np.float32(data)))
        if isinstance(data, float) and not math.isfinite(data):
            raise CheckpointError(f"{self.where(key)}: expected a finite number, got {data}")
        return data

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.get(key, default)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{self.where(key)}: expected a positive number, got {value!r}")
        return value

    def refuse_unasked(self) -> None:
        for key in self.file.values:
            name = key.removeprefix(self.prefix)
            if not key.startswith(self.prefix) or name in self.asked or name in _HARMLESS:
                continue
            value = self.get(name)
            if name not in _NEUTRAL or value != _NEUTRAL[name]:
                raise CheckpointError(f"{key}: expected it unset, got {str(value)[:40]}; this feature is not supported")


def config_of(file: GGUFFile | PlannedFile) -> tuple[dict[str, Any], GGUFFamily]:
    """Return what the config.json of this model would be, and the family.

    Raises
    ------
    CheckpointError
        The file holds no model, one of a family that is not read, or sets a key that is not supported.
    """
    kind = file.get("general.type", "model")
    if kind != "model":
        way_out = "; load the base model and give this file to load_adapter" if kind == "adapter" else ""
        raise CheckpointError(f"{file.path}: expected a model, got general.type {kind!r}{way_out}")
    family = family_of_arch(file.get("general.architecture"), str(file.path))
    meta = _Metadata(file, family.arch)
    config = {"architectures": [family.architecture], "model_type": family.model_type} | _sizes(file, meta)
    if family.arch not in _WITHOUT_ROPE:
        config |= _rope(file, meta, config)
    special: dict[str, Callable[[_Metadata, dict[str, Any]], dict[str, Any]]] = {
        "gemma2": _gemma, "gemma3": _gemma, "granite": _granite, "phi3": _phi3, "llama": _llama, "gpt2": _gpt2,
    }  # fmt: skip
    if family.arch in special:
        config |= special[family.arch](meta, config)
    meta.refuse_unasked()
    row = next(row for row in FAMILIES if row.architecture == family.architecture)
    config = {row.rename.get(key, key): value for key, value in config.items()}
    return config | _tokens(file) | {"torch_dtype": _dtype(file)}, family


def _shape(file: GGUFFile | PlannedFile, name: str) -> tuple[int, ...]:
    return file.info(name).shape


def _sizes(file: GGUFFile | PlannedFile, meta: _Metadata) -> dict[str, Any]:
    embedding = _shape(file, "token_embd.weight")
    heads, hidden = meta.size("attention.head_count"), meta.size("embedding_length")
    rotated = meta.get("rope.dimension_count")
    head_dim = meta.get("attention.key_length", rotated if type(rotated) is int and rotated * heads == hidden else None)
    if meta.get("attention.value_length", head_dim) != head_dim:
        raise CheckpointError(
            f"{meta.where('attention.value_length')}: expected {head_dim} (attention.key_length), got another"
        )
    config = {
        "hidden_size": hidden,
        "intermediate_size": meta.size("feed_forward_length"),
        "num_hidden_layers": meta.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.size("attention.head_count_kv", heads),
        "vocab_size": embedding[0],
        "max_position_embeddings": meta.size("context_length"),
        "rms_norm_eps": meta.get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    return config


def _llama(meta: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Biases show in the tensors only."""
    tensors = meta.file.tensors
    return {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}


def _rope(file: GGUFFile | PlannedFile, meta: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
    theta = meta.get("rope.freq_base", 10000.0)
    if not isinstance(theta, (int, float)) or theta <= 0:
        raise CheckpointError(f"{meta.where('rope.freq_base')}: expected a positive number, got {theta!r}")
    kind = meta.get("rope.scaling.type", "linear")  # llama.cpp's own default
    linear = meta.get("rope.scale_linear")  # the name of files before there were other kinds
    factor = meta.get("rope.scaling.factor", linear)
    old = meta.get("rope.scaling.original_context_length")
    rotated = meta.get("rope.dimension_count")
    result: dict[str, Any] = {"rope_theta": theta}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if rotated is not None and rotated != head_dim and meta.prefix != "phi3.":
        raise CheckpointError(f"{meta.where('rope.dimension_count')}: expected {head_dim} (the head's width), got {rotated}")
    stretched = factor not in (None, 0.0, 1.0)
    if stretched and kind == "none":  # llama.cpp: never scale where the type is none
        tell(f"{meta.where('rope.scaling.type')} is none, beside a factor of {factor}; nothing is scaled, as in llama.cpp")
        stretched = False
    if "rope_freqs.weight" in file.tensors and np.any(np.asarray(file.read("rope_freqs.weight")) != 1):
        if stretched:
            where = meta.where("rope.scaling.factor")
            raise CheckpointError(f"{where}: expected none beside rope_freqs.weight, which scales already, got {factor}")
        return result | {"rope_scaling": _llama3(file, theta, old)}
    if kind == "linear" and stretched:
        return result | {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "longrope" and stretched:
        raise CheckpointError(f"{meta.where('rope.scaling.factor')}: expected none with type longrope, got {factor}")
    if kind == "yarn":
        scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor or 1.0, "original_max_position_embeddings": old}
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if (value := meta.get(f"rope.scaling.{key}")) is not None:
                scaling[name] = value
        return result | {"rope_scaling": scaling}
    if kind not in ("linear", "none", "longrope"):
        raise CheckpointError(f"{meta.where('rope.scaling.type')}: expected none, linear, yarn or longrope, got {kind!r}")
    return result


def llama3_factors(pairs: int, theta: float, factor: float, low: float, high: float, old: float) -> np.ndarray:
    """What the wavelengths of Llama 3.1's rule are multiplied with, as rope_freqs.weight stores it.

    Shapes
    ------
    (pairs,) float64.

    Source
    ------
    the "llama3" rule of Llama 3.1.
    """
    turns = old * theta ** (-np.arange(pairs) / pairs) / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - blend) / factor + blend))


def _llama3(file: GGUFFile | PlannedFile, theta: float, old: float | None) -> dict[str, Any]:
    """The parameters behind rope_freqs.weight. The rule is linear between its two ends, and scaling low, high and the old
    length together changes nothing: with low = 1, two blended pairs give the other two."""
    factors = np.asarray(file.read("rope_freqs.weight"), np.float64).reshape(-1)
    pairs = factors.size
    if not np.isfinite(factors).all() or factors.min() < 1:
        raise CheckpointError(f"{file.path}: rope_freqs.weight: expected factors of at least 1, got {factors.min()}")
    factor = float(str(np.float32(factors.max())))
    for low, high, length in _llama3_candidates(factors, theta, factor, old):
        if high > low and 0 < length < math.inf:
            again = llama3_factors(pairs, theta, factor, low, high, length)
            if np.abs(again - factors).max() <= 1e-5 * factor:
                return {
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                    "original_max_position_embeddings": int(length) if length == int(length) else length,
                }  # fmt: skip
    raise CheckpointError(f"{file.path}: rope_freqs.weight: expected the factors of Llama 3's rule, got others")


def _llama3_candidates(factors: Any, theta: float, factor: float, old: float | None) -> Iterator[tuple[float, float, float]]:
    """(low, high, old length) to try: the file's own, the usual ones, and what the blended pairs say."""
    yield 1.0, 4.0, float(old or 8192)
    turns = theta ** (-np.arange(factors.size) / factors.size) / (2 * math.pi)  # of a text of length 1
    with np.errstate(all="ignore"):
        blend = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = np.flatnonzero((blend > 1e-4) & (blend < 1 - 1e-4))
    if between.size >= 2:
        slope, start = np.polyfit(turns[between], blend[between], 1)
        if slope > 0 > start:
            yield 1.0, round(1 - 1 / start, 3), float(round(-slope / start))
            yield 1.0, 1 - 1 / start, -slope / start
    elif between.size == 1:
        i = between[0]
        length = (3 * blend[i] + 1) / turns[i]
        yield 1.0, 4.0, float(round(length))
        yield 1.0, 4.0, float(length)
    else:  # a step: the first stretched pair is at the low end, the last kept one at the high end
        first = int(np.argmax(factors == factors.max()))
        yield 1.0, float(turns[first - 1] / turns[first]) if first else 4.0, float(1 / turns[first])


def _gemma(meta: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """The scale of the largest models follows the width, that of the others the head; no file says so."""
    largest = {"gemma2.": 46, "gemma3.": 62}[meta.prefix]
    by_width = config["num_hidden_layers"] == largest
    scalar = config["hidden_size"] // config["num_attention_heads"] if by_width else config.get("head_dim", 256)
    result: dict[str, Any] = {"query_pre_attn_scalar": scalar, "sliding_window": meta.get("attention.sliding_window")}
    if meta.prefix == "gemma2.":
        result["attn_logit_softcapping"] = meta.get("attn_logit_softcapping", 50.0)
        result["final_logit_softcapping"] = meta.get("final_logit_softcapping", 30.0)
    else:
        result["rope_local_base_freq"] = meta.get("rope.freq_base_swa", 10000.0)
        meta.get("attention.sliding_window_pattern")
    return {key: value for key, value in result.items() if value is not None}


def _granite(meta: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
    keys = {
        "attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
    }  # fmt: skip
    given = {name: meta.get(key) for name, key in keys.items()}
    return {name: value for name, value in given.items() if value is not None} | _llama(meta, config)


def _phi3(meta: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    window = meta.get("attention.sliding_window")
    old = meta.get("rope.scaling.original_context_length")
    attention = meta.get("rope.scaling.attn_factor")
    rotated = meta.get("rope.dimension_count")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    result["sliding_window"] = window or None
    if rotated is not None and rotated != head_dim:
        result["partial_rotary_factor"] = rotated / head_dim
    if old is not None:
        result["original_max_position_embeddings"] = old
    if "rope_factors_long.weight" in meta.file.tensors:
        factors = {
            key: [float(str(x)) for x in np.asarray(meta.file.read(f"rope_factors_{key}.weight"), np.float32).reshape(-1)]
            for key in ("long", "short")
        }
        scaling = {"rope_type": "longrope", "long_factor": factors["long"], "short_factor": factors["short"]}
        result["rope_scaling"] = scaling | ({"attention_factor": attention} if attention is not None else {})
    return result


def _gpt2(meta: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Not RMS but LayerNorm, and as many heads of keys as of queries."""
    if config.pop("num_key_value_heads") != config["num_attention_heads"]:
        raise CheckpointError(f"{meta.where('attention.head_count_kv')}: expected attention.head_count, got another")
    if config.pop("head_dim", None) not in (None, config["hidden_size"] // config["num_attention_heads"]):
        raise CheckpointError(f"{meta.where('attention.key_length')}: expected embedding_length / head_count, got another")
    meta.get("rope.dimension_count")  # some writers give one all the same
    return {"rms_norm_eps": meta.get("attention.layer_norm_epsilon")}


def _tokens(file: GGUFFile | PlannedFile) -> dict[str, Any]:
    """Ids of the special tokens; where the end of a turn has a token of its own, it ends a text, too."""
    ends = ends_of(file)
    found: dict[str, Any] = {"bos_token_id": token_id(file, "bos"), "pad_token_id": token_id(file, "padding")}
    found["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    return {key: value for key, value in found.items() if value is not None}


def _dtype(file: GGUFFile | PlannedFile) -> str:
    return {"F32": "float32", "F16": "float16"}.get(file.info("token_embd.weight").type.name, "bfloat16")

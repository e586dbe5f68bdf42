"""Model families as data: config.json -> the arguments of `Decoder`, and the names and shapes of its weights.

The families are rows of the table in `families.py`. What a row cannot express is refused by name, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np

from .errors import CheckpointError, shorten
from .families import ATTENTION, FAMILIES, HARMLESS, MLP, SIZES, Family
from .multimodal import is_left_out, spellings, text_config
from .rope import Rope, number, rope_of

MAX_HEAD_DIM = 4096
MAX_LAYERS = 10_000
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
_NEUTRAL = (None, False, [], {}, "")


@dataclass(frozen=True)
class WeightSpec:
    """One tensor of the file: its name in the model, in the file, and its shape (out, in) or (n,).

    parts: decoder name and first row of each matrix, where the tensor holds several behind each other; else empty.
    transposed: the file stores it as (in, out).
    aliases: names that other releases have given it.
    """

    name: str
    file_name: str
    shape: tuple[int, ...]
    kind: Literal["projection", "embedding", "positions", "head", "vector"]
    parts: tuple[tuple[str, int], ...] = ()
    transposed: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module path as PEFT spells it, such as model.layers.0.self_attn.q_proj."""
        return self.file_name.rpartition(".")[0]

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        return self.shape[::-1] if self.transposed else self.shape


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
        """Every tensor that the model needs, in the order of the forward pass."""
        k, names = self.decoder_kwargs, self.family.globals
        hidden = k["hidden_size"]
        vocab = (k["vocab_size"], hidden)
        out = [WeightSpec("embed_tokens", names["embed_tokens"] + ".weight", vocab, "embedding")]
        if "embed_positions" in names:
            shape = (k["max_position_embeddings"], hidden)
            out.append(WeightSpec("embed_positions", names["embed_positions"] + ".weight", shape, "positions"))
        for n in range(k["num_hidden_layers"]):
            for parts, path in self.family.layer.items():
                out += self._module(f"layers.{n}.", parts.split(), f"{self.family.layers}.{n}.{path}")
        out += self._module("", ["norm"], names["norm"])
        if not self.tied:
            out.append(WeightSpec("lm_head", names["lm_head"] + ".weight", vocab, "head"))
        return [replace(spec, aliases=spellings(spec.file_name, self.family)[1:]) for spec in out]

    def _module(self, layer: str, parts: list[str], path: str) -> list[WeightSpec]:
        """The weight of a module and its bias, where it has one."""
        if parts[0] not in ATTENTION + MLP:
            spec = WeightSpec(layer + parts[0], path + ".weight", (self._norm_width(parts[0]),), "vector")
            has_bias = self.decoder_kwargs["norm"] == "layer"
        else:
            shapes = [self._shape(part) for part in parts]
            shape = (sum(rows for rows, _ in shapes), shapes[0][1])
            firsts = np.cumsum([0] + [rows for rows, _ in shapes]).tolist()
            places = tuple((layer + part, first) for part, first in zip(parts, firsts, strict=False))
            name = layer + (parts[0] if len(parts) == 1 else path.rpartition(".")[2])
            places = () if len(parts) == 1 else places
            spec = WeightSpec(name, path + ".weight", shape, "projection", places, self.family.transposed)
            has_bias = parts[0] in self.biased
        if not has_bias:
            return [spec]
        biases = tuple((f"{part}.bias", first) for part, first in spec.parts)
        return [spec, WeightSpec(spec.name + ".bias", path + ".bias", spec.shape[:1], "vector", biases)]

    def _shape(self, projection: str) -> tuple[int, int]:
        k = self.decoder_kwargs
        hidden, mid = k["hidden_size"], k["intermediate_size"]
        q, kv = k["num_attention_heads"] * k["head_dim"], k["num_key_value_heads"] * k["head_dim"]
        return {
            "q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q),
            "gate_proj": (mid, hidden), "up_proj": (mid, hidden), "down_proj": (hidden, mid),
        }[projection]  # fmt: skip

    def _norm_width(self, norm: str) -> int:
        k = self.decoder_kwargs
        if norm not in ("q_norm", "k_norm"):
            return int(k["hidden_size"])
        heads = 1 if k["qk_norm"] == "head" else k["num_attention_heads" if norm == "q_norm" else "num_key_value_heads"]
        return int(heads * k["head_dim"])

    def ignored(self, file_name: str) -> bool:
        """Whether a tensor of a checkpoint carries nothing that this model needs."""
        buffers = (".rotary_emb.inv_freq", ".attn.masked_bias") + ((".attn.bias",) if self.family.transposed else ())
        heads = ("lm_head.weight", "language_model.lm_head.weight") if self.tied else ()
        return file_name.endswith(buffers) or file_name in heads or is_left_out(file_name, self.family)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Read a model's config.json.

    Raises
    ------
    CheckpointError
        The family or a feature is not supported (named, with what is supported), or a size is missing or absurd.
    """
    config = text_config(config)
    family = _family(config)
    try:
        return _architecture(_in_common_names(config, family), family)
    except (TypeError, LookupError, AttributeError, ArithmeticError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}"  # a list for a number, or the like; sizes are checked by name
        raise CheckpointError(f"config.json: expected values of the right kinds, got one that is not ({reason})") from None


def _architecture(config: dict[str, Any], family: Family) -> Architecture:
    _refuse_unknown(config, family)
    kwargs = _sizes(config, family) | dict(family.decoder)
    layers = kwargs["num_hidden_layers"]
    kwargs["activation"] = _activation(config, family)
    kwargs["tie_word_embeddings"] = bool(config["tie_word_embeddings"])
    kwargs["sliding_window"] = _windows(config, family, layers, kwargs["max_position_embeddings"])
    kwargs |= _scales(config, family, kwargs) | _ropes(config, family, kwargs)
    defaults = {"norm": "rms", "qk_norm": "none"}
    return Architecture(family, defaults | kwargs, _biased(config, family))


def _family(config: Mapping[str, Any]) -> Family:
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise CheckpointError(f"config.json: architectures: expected a list of names, got {names!r}")
    for family in FAMILIES:
        if names == [family.architecture] or (not names and config.get("model_type") == family.model_type):
            return family
    got = shorten(names) if names else repr(config.get("model_type"))
    known = ", ".join(family.architecture for family in FAMILIES)
    raise CheckpointError(f"config.json: architectures: expected one of {known}, got {got}")


def _in_common_names(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    common = {new: config[old] for new, old in family.rename.items() if config.get(old) is not None}
    rest = {key: value for key, value in config.items() if key not in family.rename.values()}
    merged = {"tie_word_embeddings": False} | dict(family.defaults) | rest | common
    for key, value in family.defaults.items():
        if merged[key] is None and key not in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
            merged[key] = value  # null means the default, but for these it means "none"
    return merged


def _refuse_unknown(config: Mapping[str, Any], family: Family) -> None:
    known = SIZES | HARMLESS | family.keys
    for key, value in config.items():
        if key not in known and not any(value is n or (type(value) is type(n) and value == n) for n in _NEUTRAL):
            if (key, value) in (("partial_rotary_factor", 1), ("sliding_window", 0)):
                continue
            raise CheckpointError(
                f"config.json: {key}: expected nothing, got {str(value)[:60]!r}; this is not supported for "
                f"{family.architecture} and might change the result"
            )


def _sizes(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
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
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < 1:
        raise CheckpointError(f"config.json: rms_norm_eps: expected a small positive number, got {eps!r}")
    return {
        "hidden_size": hidden,
        "intermediate_size": _size(config, "intermediate_size", family.mlp_ratio * hidden or None),
        "num_hidden_layers": _layers(config),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": _size(config, "vocab_size"),
        "max_position_embeddings": _size(config, "max_position_embeddings", 2048),
        "norm_eps": float(eps),
    }


def _layers(config: Mapping[str, Any]) -> int:
    layers = _size(config, "num_hidden_layers")
    if layers > MAX_LAYERS:  # lists of that length are made before any tensor is seen
        raise CheckpointError(f"config.json: num_hidden_layers: expected at most {MAX_LAYERS}, got {layers}")
    return layers


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"config.json: {key}: expected a positive number, got nothing; is this a model folder?")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31 - 1:
        raise CheckpointError(f"config.json: {key}: expected a positive number below 2^31 - 1, got {value!r}")
    return value


def _activation(config: Mapping[str, Any], family: Family) -> str:
    key = "hidden_activation" if "hidden_activation" in family.keys and config.get("hidden_activation") else "hidden_act"
    name = config.get(key) or "silu"
    name = family.aliases.get(name, name) if isinstance(name, str) else ""
    if name not in ACTIVATIONS or (ACTIVATIONS[name] == "silu" and not family.decoder.get("gated_mlp", True)):
        raise CheckpointError(
            f"config.json: {key}: expected one of {', '.join(ACTIVATIONS)}, got {name!r}; this is not supported"
        )
    return ACTIVATIONS[name]


def _biased(config: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    attention = ATTENTION if config.get("attention_bias") and "attention_bias" in family.keys else ()
    return family.biases + attention + (MLP if config.get("mlp_bias") and "mlp_bias" in family.keys else ())


def _windows(config: Mapping[str, Any], family: Family, layers: int, positions: int) -> int | list[int]:
    """Attention windows: one number for all layers, or one for each; 0 for none."""
    kinds = _layer_kinds(config, family, layers)
    if family.windows == "never" or config.get("sliding_window") is None:
        return 0
    if family.windows in ("switch", "nope") and not config.get("use_sliding_window"):
        return 0
    window = _size(config, "sliding_window")
    window = 0 if window >= positions else window
    local = [kind == "sliding_attention" for kind in kinds] if kinds else _local_layers(config, family, layers)
    found = [window if is_local else 0 for is_local in local]
    return found[0] if len(set(found)) == 1 else found


def _layer_kinds(config: Mapping[str, Any], family: Family, layers: int) -> list[str]:
    """The layer_types of a config.json, or nothing where rules of the family decide."""
    kinds = config.get("layer_types")
    if not kinds or "layer_types" not in family.keys:
        return []
    allowed = ["full_attention", "sliding_attention"]
    if family.windows == "all":  # transformers does not read the list then: it may only repeat what sliding_window says
        allowed = allowed[:1] if config.get("sliding_window") is None else allowed[1:]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in allowed for kind in kinds):
        got = shorten(kinds) if isinstance(kinds, list) else repr(kinds)
        raise CheckpointError(f"config.json: layer_types: expected {layers} of {' and '.join(allowed)}, got {got}")
    return kinds


def _local_layers(config: Mapping[str, Any], family: Family, layers: int) -> list[bool]:
    if family.windows == "switch":
        return [n >= config["max_window_layers"] for n in range(layers)]
    if family.windows == "alternate":
        return [n % 2 == 0 for n in range(layers)]
    if family.windows == "pattern":
        period = _size(config, "sliding_window_pattern", 6)
        return [(n + 1) % period != 0 for n in range(layers)]
    if family.windows == "nope":
        return [not turns for turns in _turning_layers(config, layers)]
    return [True] * layers


def _scales(config: Mapping[str, Any], family: Family, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if family.embedding_scale == "sqrt":
        out["embedding_scale"] = _rounded(math.sqrt(kwargs["hidden_size"]), config)
    if "embedding_multiplier" in family.keys:
        factors = {key: number({key: 1.0} | dict(config), key) for key in family.keys if key.endswith("_multiplier")}
        out["embedding_scale"] = factors["embedding_multiplier"]
        out["residual_scale"] = factors["residual_multiplier"]
        out["attention_scale"] = factors["attention_multiplier"]
        out["logit_scale"] = 1.0 / number({"logits_scaling": 1.0} | dict(config), "logits_scaling")
    if "query_pre_attn_scalar" in family.keys:
        out["attention_scale"] = number(config, "query_pre_attn_scalar") ** -0.5
        for key, name in (("attn_logit_softcapping", "attention_softcap"), ("final_logit_softcapping", "logit_softcap")):
            if config.get(key) is not None:
                out[name] = number(config, key)
    if config.get("scale_attn_weights") is False and "scale_attn_weights" in family.keys:
        out["attention_scale"] = 1.0
    return out


def _rounded(x: float, config: Mapping[str, Any]) -> float:
    """transformers keeps the embedding's factor in the type of the embedding, and so did the training."""
    name = str(config.get("dtype") or config.get("torch_dtype"))
    kinds = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    return float(np.asarray(x).astype(kinds.get(name, np.float32)))


def _turning_layers(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Whether each layer rotates its queries and keys (SmolLM3)."""
    given = config.get("no_rope_layers")
    if given is None:
        period = _size(config, "no_rope_layer_interval", 4)
        return [(n + 1) % period != 0 for n in range(layers)]
    if not isinstance(given, list) or len(given) < layers or not all(value in (0, 1) for value in given):
        raise CheckpointError(f"config.json: no_rope_layers: expected {layers} of 0 and 1, got {str(given)[:60]}")
    return [bool(value) for value in given[:layers]]


def _ropes(config: Mapping[str, Any], family: Family, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    layers, head_dim, positions = kwargs["num_hidden_layers"], kwargs["head_dim"], kwargs["max_position_embeddings"]
    if family.rope == "none":
        return {}
    if family.rope == "local":
        return _local_and_global_ropes(config, kwargs)
    rope = rope_of(config, head_dim, positions, family.aliases)
    out: dict[str, Any] = {"rope_inv_freq": rope.inv_freq, "rope_scale": rope.scale}
    if rope.long_inv_freq is not None:
        out |= {"second_rope_inv_freq": rope.long_inv_freq, "second_rope_scale": rope.scale, "rope_switch": rope.switch}
    if family.rope == "nope":
        out["layer_rope"] = [0 if turns else -1 for turns in _turning_layers(config, layers)]
    return out


def _local_and_global_ropes(config: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 3: layers with a window have a table of their own."""
    given = config.get("rope_parameters") or {}
    rest = {key: config.get(key) for key in ("rope_theta", "rope_scaling")}
    if "full_attention" in given or "sliding_attention" in given:
        wide = {"rope_parameters": given.get("full_attention"), "rope_theta": rest["rope_theta"] or 1e6}
        local = given.get("sliding_attention")
    else:
        wide = {
            "rope_parameters": given or None,
            "rope_scaling": rest["rope_scaling"],
            "rope_theta": rest["rope_theta"] or 1e6,
        }
        local = None
    narrow = {"rope_parameters": local, "rope_theta": config.get("rope_local_base_freq") or 10000.0}
    tables: list[Rope] = [rope_of(c, kwargs["head_dim"], kwargs["max_position_embeddings"]) for c in (wide, narrow)]
    if any(table.long_inv_freq is not None for table in tables):
        raise CheckpointError("config.json: rope_type: expected one without longrope for this family, got 'longrope'")
    layers = kwargs["num_hidden_layers"]
    kinds = config.get("layer_types")
    period = _size(config, "sliding_window_pattern", 6)
    local_layers = [k == "sliding_attention" for k in kinds] if kinds else [(n + 1) % period != 0 for n in range(layers)]
    return {
        "rope_inv_freq": tables[0].inv_freq, "rope_scale": tables[0].scale,
        "second_rope_inv_freq": tables[1].inv_freq, "second_rope_scale": tables[1].scale,
        "layer_rope": [int(is_local) for is_local in local_layers],
    }  # fmt: skip

"""Model families as data: config.json -> the arguments of `Decoder`, and the names and shapes of its weights.

The families are rows of the table in `table.py`. What a row cannot express is refused by name, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..errors import CheckpointError, shorten
from .attention_windows import windows_of
from .class_defaults import NULL_IS_NOT_DEFAULT
from .config_keys import refuse_other_mathematics
from .config_values import agreed, size
from .labels import CLASSIFIERS, SCORE, Labels, as_language_model, labels_of
from .layer_ropes import ropes_of
from .multimodal import spellings, text_config
from .scales import scales_of, stated_dtype
from .table import ATTENTION, FAMILIES, MLP, Family

MAX_HEAD_DIM = 4096
MAX_LAYERS = 10_000
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
# GPT-2's names of sizes, for which transformers takes the common ones, too.
_READ_UNDER_BOTH_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_PLACED_DEFAULTS = ("rope_theta", "rope_local_base_freq", "original_max_position_embeddings")


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
    """A family with the sizes of one model; labels: of a classifier."""

    family: Family
    decoder_kwargs: dict[str, Any]
    biased: tuple[str, ...]
    labels: Labels | None = None

    @property
    def name(self) -> str:
        """The class of transformers that it is."""
        return self.family.architecture if self.labels is None else CLASSIFIERS[self.family.architecture]

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
        if self.labels is not None:  # the decoder has one name for the head, whatever it says
            out.append(WeightSpec("lm_head", SCORE, (len(self.labels), hidden), "head"))
        elif not self.tied:
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


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Read a model's config.json.

    Raises
    ------
    CheckpointError
        The family or a feature is not supported (named, with what is supported), a size is missing or absurd, or two places
        contradict each other (named with both values).
    """
    labels = labels_of(config)
    config = as_language_model(text_config(config))
    family = _family(config)
    try:
        found = _architecture(_in_common_names(config, family), family)
        return found if labels is None else with_labels(found, labels)
    except (TypeError, LookupError, AttributeError, ArithmeticError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}"  # a list for a number, or the like; sizes are checked by name
        raise CheckpointError(f"config.json: expected values of the right kinds, got one that is not ({reason})") from None


def with_labels(architecture: Architecture, labels: Labels) -> Architecture:
    """The classifier of a language model: another head, tied to nothing, whose numbers are the logits themselves."""
    head = {"num_labels": len(labels), "problem_type": labels.problem_type, "tie_word_embeddings": False}
    kwargs = {k: v for k, v in architecture.decoder_kwargs.items() if k not in ("logit_scale", "logit_softcap")}
    return replace(architecture, decoder_kwargs=kwargs | head, labels=labels)


def _architecture(config: dict[str, Any], family: Family) -> Architecture:
    refuse_other_mathematics(config, family)
    stated_dtype(config)
    kwargs = _sizes(config, family) | dict(family.decoder)
    layers, positions = kwargs["num_hidden_layers"], kwargs["max_position_embeddings"]
    kwargs["activation"] = _activation(config, family)
    kwargs["tie_word_embeddings"] = _tied(config)
    kwargs["sliding_window"] = windows_of(config, family, layers, positions)
    kwargs |= scales_of(config, family, kwargs["hidden_size"])
    kwargs |= ropes_of(config, family, layers, kwargs["head_dim"], positions)
    defaults = {"norm": "rms", "qk_norm": "none"}
    return Architecture(family, defaults | kwargs, _biased(config, family))


def _family(config: Mapping[str, Any]) -> Family:
    names, kind = config.get("architectures") or [], config.get("model_type")
    if not isinstance(names, list):
        raise CheckpointError(f"config.json: architectures: expected a list of names, got {names!r}")
    family = next((f for f in FAMILIES if names == [f.architecture] or (not names and kind == f.model_type)), None)
    if family is None:
        got = shorten(names) if names else repr(kind)
        known = ", ".join(family.architecture for family in FAMILIES)
        more = ", or the class of one of them for SequenceClassification" if "Classification" in got else ""
        raise CheckpointError(f"config.json: architectures: expected one of {known}{more}, got {got}")
    if kind not in (None, family.model_type):
        raise CheckpointError(
            f"config.json: model_type: expected {family.model_type!r} with architectures {names[0]}, got {str(kind)[:60]!r}; "
            "correct the one that is not this model's"
        )
    return family


def _in_common_names(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The keys under the names that most families have, and the family's defaults for what is left out."""
    own = {new: config[old] for new, old in family.rename.items() if config.get(old) is not None}
    for new, old in family.rename.items():
        agreed({old: config.get(old), new: config.get(new)})
        if config.get(old) is None and config.get(new) is not None and new not in _READ_UNDER_BOTH_NAMES:
            agreed({f"{old} (by default)": family.defaults.get(new), new: config[new]}, f"{family.architecture} has {old}")
    rest = {key: value for key, value in config.items() if key not in family.rename.values()}
    merged = _explained_elsewhere(family.defaults) | rest | own
    for key, value in _explained_elsewhere(family.defaults).items():
        if merged[key] is None and key not in NULL_IS_NOT_DEFAULT:
            merged[key] = value
    return merged


def _explained_elsewhere(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults without those of the rotation, which hold only where none of several places gives a value."""
    return {key: value for key, value in defaults.items() if key not in _PLACED_DEFAULTS}


def _tied(config: Mapping[str, Any]) -> bool:
    tied = config["tie_word_embeddings"]
    if not isinstance(tied, bool):
        raise CheckpointError(f"config.json: tie_word_embeddings: expected true or false, got {str(tied)[:60]!r}")
    return tied


def _sizes(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    hidden = size(config, "hidden_size")
    heads = size(config, "num_attention_heads")
    kv_heads = size(config, "num_key_value_heads", heads)
    head_dim = size(config, "head_dim", hidden // heads)
    if family.rope == "none" and (head_dim * heads != hidden or kv_heads != heads):
        key, got = ("head_dim", head_dim) if kv_heads == heads else ("num_key_value_heads", kv_heads)
        raise CheckpointError(
            f"config.json: {key}: expected nothing, as {family.architecture} splits {hidden} evenly, got {got}"
        )
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(f"config.json: hidden_size: expected a multiple of num_attention_heads {heads}, got {hidden}")
    if heads % kv_heads:
        raise CheckpointError(f"config.json: num_key_value_heads: expected a divisor of {heads}, got {kv_heads}")
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise CheckpointError(f"config.json: head_dim: expected an even number up to {MAX_HEAD_DIM}, got {head_dim}")
    eps = config["rms_norm_eps"]
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < 1:
        raise CheckpointError(f"config.json: rms_norm_eps: expected a small positive number, got {eps!r}")
    return {
        "hidden_size": hidden,
        "intermediate_size": size(config, "intermediate_size", family.mlp_ratio * hidden or None),
        "num_hidden_layers": _layers(config),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": size(config, "vocab_size"),
        "max_position_embeddings": size(config, "max_position_embeddings"),
        "norm_eps": float(eps),
    }


def _layers(config: Mapping[str, Any]) -> int:
    layers = size(config, "num_hidden_layers")
    if layers > MAX_LAYERS:  # lists of that length are made before any tensor is seen
        raise CheckpointError(f"config.json: num_hidden_layers: expected at most {MAX_LAYERS}, got {layers}")
    return layers


def _activation(config: Mapping[str, Any], family: Family) -> str:
    """Gemma's first release had its activation under two keys; both must mean the same."""
    found = {}
    for key in ("hidden_act", "hidden_activation"):
        name = config.get(key)
        if name is None or (key == "hidden_activation" and key not in family.keys):
            continue
        name = family.aliases.get(name, name) if isinstance(name, str) else ""
        if name not in ACTIVATIONS or (ACTIVATIONS[name] == "silu" and not family.decoder.get("gated_mlp", True)):
            raise CheckpointError(
                f"config.json: {key}: expected one of {', '.join(ACTIVATIONS)}, got {name!r}; this is not supported"
            )
        found[key] = ACTIVATIONS[name]
    return str(agreed(found))


def _biased(config: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    attention = ATTENTION if config.get("attention_bias") and "attention_bias" in family.keys else ()
    return family.biases + attention + (MLP if config.get("mlp_bias") and "mlp_bias" in family.keys else ())

"""The table of model families: names of tensors, and what of the decoder each family uses.

A family is one row of `FAMILIES`. What a config.json says beyond a row is judged in `config_keys.py`; what it leaves out is in
`class_defaults.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .class_defaults import DEFAULTS

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
QKV = ATTENTION[:3]

# Decoder names to module paths, in the order of the forward pass. Several decoder names: one module of the file that holds
# these matrices behind each other.
_ATTENTION = {name: f"self_attn.{name}" for name in ATTENTION}
_MLP = {name: f"mlp.{name}" for name in MLP}
_QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_PRE = {"input_layernorm": "input_layernorm"}
LLAMA = _PRE | _ATTENTION | {"post_attention_layernorm": "post_attention_layernorm"} | _MLP
LLAMA_QK = _PRE | _ATTENTION | _QK_NORMS | {"post_attention_layernorm": "post_attention_layernorm"} | _MLP
_OUTPUT_NORMS = {"attention_output_norm": "post_attention_layernorm"}, {"mlp_output_norm": "post_feedforward_layernorm"}
GEMMA2 = (
    _PRE | _ATTENTION | _OUTPUT_NORMS[0] | {"post_attention_layernorm": "pre_feedforward_layernorm"} | _MLP | _OUTPUT_NORMS[1]
)
GEMMA3 = GEMMA2 | _QK_NORMS
OLMO2 = _ATTENTION | _QK_NORMS | _OUTPUT_NORMS[0] | _MLP | _OUTPUT_NORMS[1]
PHI3 = _PRE | {
    "q_proj k_proj v_proj": "self_attn.qkv_proj", "o_proj": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "gate_proj up_proj": "mlp.gate_up_proj", "down_proj": "mlp.down_proj",
}  # fmt: skip
GPT2 = {
    "input_layernorm": "ln_1", "q_proj k_proj v_proj": "attn.c_attn", "o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2", "up_proj": "mlp.c_fc", "down_proj": "mlp.c_proj",
}  # fmt: skip

_LLAMA_GLOBALS = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
_GPT2_GLOBALS = {
    "embed_tokens": "transformer.wte", "embed_positions": "transformer.wpe", "norm": "transformer.ln_f", "lm_head": "lm_head",
}  # fmt: skip

Window = Literal["never", "all", "switch", "alternate", "pattern", "nope"]


@dataclass(frozen=True)
class Family:
    """How one family of decoders differs from the others.

    Attributes
    ----------
    layer, layers, globals : mapping, str, mapping
        Decoder names to module paths within a layer; the path of the layers; those that belong to no layer.
    decoder : mapping
        Arguments of `Decoder` that the whole family has.
    biases : tuple of str
        Projections that always have a bias; others follow the keys attention_bias and mlp_bias, where the row names them.
    windows : str
        Which layers have a sliding window: "all" (where sliding_window is a number), "switch" (layers from
        max_window_layers on, only with use_sliding_window), "alternate" (every other, the first included), "pattern" (all
        but every sixth), "nope" (those without rotation, only with use_sliding_window). layer_types wins over all rules.
    keys : frozenset of str
        Keys of config.json that the row honours besides `SIZES`.
    rename, aliases : mapping
        The family's own names of common keys, and of their values.
    mlp_ratio : int
        intermediate_size in hidden sizes, where config.json leaves it out.
    text_of : str
        For a model of texts and images, of which the text model is read: what that is called on its own.
    left_out : tuple of str
        What file names begin with that belongs to the rest of such a model.
    spellings : tuple of str
        What the names of the text model have begun with in different releases, the one of modules first.
    """

    architecture: str
    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: LLAMA)
    layers: str = "model.layers"
    globals: Mapping[str, str] = field(default_factory=lambda: _LLAMA_GLOBALS)
    decoder: Mapping[str, object] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    windows: Window = "never"
    rope: Literal["all", "nope", "local", "none"] = "all"
    keys: frozenset[str] = frozenset()
    rename: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    mlp_ratio: int = 0
    text_of: str = ""
    left_out: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    transposed: bool = False
    embedding_scale: Literal["none", "sqrt", "multiplier"] = "none"

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What transformers assumes where config.json leaves a key out."""
        return DEFAULTS[self.model_type.removesuffix("_text")]


_ROPE = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"})
_BIAS = frozenset({"attention_bias"})
_WINDOW = frozenset({"sliding_window"})
_SWITCH = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
_GEMMA = {"norm_weight_offset": 1.0}
_GEMMA_KEYS = _ROPE | _BIAS | {"hidden_activation"}
_SANDWICH_KEYS = _GEMMA_KEYS | _WINDOW | {
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "layer_types",
}  # fmt: skip

_GEMMA3 = Family(
    "Gemma3ForCausalLM", "gemma3_text", layer=GEMMA3, decoder=_GEMMA | {"post_norm": True, "qk_norm": "head"},
    embedding_scale="sqrt", windows="pattern", rope="local",
    keys=_SANDWICH_KEYS | {"rope_local_base_freq", "sliding_window_pattern"},
    rename={"hidden_act": "hidden_activation"},
    spellings=("model.", "model.language_model.", "language_model.model."),
)  # fmt: skip

FAMILIES = (
    Family("LlamaForCausalLM", "llama", keys=_ROPE | _BIAS | {"mlp_bias"}),
    Family(
        "MistralForCausalLM", "mistral", windows="all", keys=_ROPE | _WINDOW | {"layer_types"},
    ),
    Family(
        "Qwen2ForCausalLM", "qwen2", biases=QKV, windows="switch", keys=_ROPE | _SWITCH,
    ),
    Family(
        "Qwen3ForCausalLM", "qwen3", layer=LLAMA_QK, decoder={"qk_norm": "head"}, windows="switch",
        keys=_ROPE | _SWITCH | _BIAS,
    ),
    Family(
        "SmolLM3ForCausalLM", "smollm3", windows="nope", rope="nope",
        keys=_ROPE | _SWITCH | _BIAS | {"mlp_bias", "no_rope_layers", "no_rope_layer_interval"},
    ),
    Family(
        "Phi3ForCausalLM", "phi3", layer=PHI3, windows="all",
        keys=_ROPE | _WINDOW | {"partial_rotary_factor"},
        aliases={"su": "longrope", "yarn": "longrope"},
    ),
    Family(
        "GemmaForCausalLM", "gemma", decoder=_GEMMA, embedding_scale="sqrt", keys=_GEMMA_KEYS,
        aliases={"gelu": "gelu_pytorch_tanh"},  # what the first release meant
    ),
    Family(
        "Gemma2ForCausalLM", "gemma2", layer=GEMMA2, decoder=_GEMMA | {"post_norm": True}, embedding_scale="sqrt",
        windows="alternate", keys=_SANDWICH_KEYS, rename={"hidden_act": "hidden_activation"},
    ),
    _GEMMA3,
    replace(
        _GEMMA3, architecture="Gemma3ForConditionalGeneration", model_type="gemma3", layers="model.language_model.layers",
        globals={
            "embed_tokens": "model.language_model.embed_tokens", "norm": "model.language_model.norm", "lm_head": "lm_head",
        },
        text_of="Gemma3ForCausalLM", left_out=("vision_tower.", "multi_modal_projector."),
        spellings=("model.language_model.", "language_model.model.", "model."),
    ),
    Family(
        "Olmo2ForCausalLM", "olmo2", layer=OLMO2, decoder={"pre_norm": False, "post_norm": True, "qk_norm": "row"},
        keys=_ROPE | _BIAS,
    ),
    Family(
        "GraniteForCausalLM", "granite", embedding_scale="multiplier",
        keys=_ROPE | _BIAS | {
            "mlp_bias", "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling",
        },
    ),
    Family(
        "GPT2LMHeadModel", "gpt2", layer=GPT2, layers="transformer.h", globals=_GPT2_GLOBALS, biases=ATTENTION + MLP,
        decoder={"norm": "layer", "gated_mlp": False, "learned_positions": True}, rope="none", transposed=True,
        keys=frozenset({"scale_attn_weights"}), mlp_ratio=4,
        rename={
            "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
            "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
        },
    ),
)  # fmt: skip

SIZES = frozenset({
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "architectures",
    "model_type",
})  # fmt: skip

"""Keys of a config.json beyond those that a family honours: which are harmless, which are refused, which are only named.

transformers keeps every key and reads those that its class knows; a key that nothing reads changes nothing there. So it is
here, but for keys that stand for other mathematics than the family's: a file that sets one was written for another model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .config_values import same
from .layer_ropes import rope_keys_without_effect
from .table import SIZES, Family

# Keys that say nothing about the function that the model computes: token ids, how it was made and saved, how transformers runs
# it. The dropouts are those of the base's own training; an adapter is trained without them.
HARMLESS = frozenset({
    "auto_map", "begin_suppress_tokens", "bos_token_id", "cache_implementation", "chunk_size_feed_forward",
    "decoder_start_token_id", "dtype", "eos_token_id", "finetuning_task", "id2label", "initializer_range", "label2id",
    "max_length", "min_length", "n_ctx", "num_labels", "output_attentions", "output_hidden_states", "pad_token_id",
    "predict_special_tokens", "prefix", "pretraining_tp", "problem_type", "quantization_config", "reorder_and_upcast_attn",
    "return_dict", "sep_token_id", "suppress_tokens", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "unsloth_fixed",
    "unsloth_version", "use_bfloat16", "use_cache", "_name_or_path", "_attn_implementation", "_attn_implementation_autoset",
    "attn_implementation", "num_return_sequences", "num_beams", "num_beam_groups", "repetition_penalty", "temperature",
    "top_k", "top_p", "typical_p", "diversity_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "do_sample", "early_stopping", "gradient_checkpointing", "bad_words_ids",
    "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "remove_invalid_values",
    "output_scores", "return_dict_in_generate", "use_return_dict", "is_decoder", "transformers.js_config", "embedding_size",
    "_sliding_window_pattern", "is_llama_config", "rope_interleaved", "max_window_layers", "model_name",
    "initializer_factor", "output_router_logits", "router_aux_loss_coef", "name_or_path", "_commit_hash",
})  # fmt: skip

_HARMLESS_BY_NAME = re.compile(r"(dropout|_pdrop|_token_ids?|_token_index)$")
_NEUTRAL: tuple[Any, ...] = (None, False, [], {}, "")
# Keys that change the function in some family, with the values that change nothing besides `_NEUTRAL`.
_CHANGES: dict[str, tuple[Any, ...]] = {
    # rotation and positions
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rotary_percent", "rope_pct", "rope_ratio"), (1,)),
    **dict.fromkeys((
        "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "global_rope_theta", "local_rope_theta",
        "rotary_dim", "rotary_emb_base", "rotary_emb_fraction", "no_rope_layers", "no_rope_layer_interval", "use_mrope",
        "mrope_section", "use_dynamic_ntk", "use_logn_attn", "alibi", "use_alibi", "relative_attention_num_buckets",
        "original_max_position_embeddings",
    ), ()),
    "position_embedding_type": ("rope", "rotary"),
    # attention
    **dict.fromkeys((
        "sliding_window", "sliding_window_size", "attention_window", "attention_chunk_size", "attention_window_size",
    ), (0,)),
    **dict.fromkeys((
        "use_sliding_window", "sliding_window_pattern", "attn_temperature_tuning", "attention_sink", "attention_sinks",
        "use_attention_sinks", "num_attention_sinks", "clip_qkv", "qk_layernorm", "qk_norm", "use_qk_norm", "use_qknorm",
        "query_pre_attn_scalar", "use_bidirectional_attention", "add_cross_attention", "is_encoder_decoder",
        "cross_attention_hidden_size", "cross_attention_layers", "multi_query", "new_decoder_architecture", "kv_lora_rank",
        "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "cross_layer_attention", "share_kv",
        "attention_head_type", "pruned_heads", "use_gated_attention", "attn_output_gate", "index_topk",
        "scale_attn_by_inverse_layer_idx", "attention_types", "global_attn_every_n_layers", "local_attention",
    ), ()),
    "num_kv_shared_layers": (0,),
    "layer_types": (),
    # norms, biases, block structure
    **dict.fromkeys((
        "attention_bias", "mlp_bias", "qkv_bias", "use_qkv_bias", "add_qkv_bias", "use_bias", "bias", "lm_head_bias",
        "attention_out_bias", "attention_in_bias", "o_bias", "add_bias_linear", "rms_norm_add_unit_offset",
        "use_parallel_residual", "parallel_residual", "parallel_attn", "parallel_block", "use_post_norm", "post_norm",
        "sandwich_norm", "apply_residual_connection_post_layernorm", "layernorm_embedding", "embedding_norm",
        "normalize_embedding", "word_embed_proj_dim", "hidden_size_per_layer_input", "vocab_size_per_layer_input",
        "block_configs", "per_layer_config", "layers_block_type", "hidden_activation", "q_norm", "k_norm",
    ), ()),
    # other parts, or weights that only another program reads
    **dict.fromkeys(("text_config", "vision_config", "audio_config", "encoder", "decoder", "mm_projector_type"), ()),
    "dim_model_base": (),
    "num_codebooks": (1,),
}  # fmt: skip
# Keys of what every family here does: only true changes nothing.
_MUST_BE_TRUE = frozenset({
    "scale_attn_weights", "is_causal", "causal", "use_causal_mask", "use_rope", "use_rotary", "rotary", "pre_norm",
    "use_pre_norm", "normalize_before", "do_layer_norm_before", "use_gated_mlp", "gated_mlp", "use_glu", "use_rms_norm",
})  # fmt: skip
_CHANGES_BY_NAME = re.compile(
    r"(^|_)(scale|scales|scaling|multiplier|mup|moe|ssm|mamba|altup|laurel|experts?|softcap(ping)?)(_|$)"
    r"|softcap|expert|kv_shared|cross_layer"
)
_NEUTRAL_BY_NAME = (0, 1)


def refuse_other_mathematics(config: Mapping[str, Any], family: Family) -> None:
    """Refuse a key that the family does not honour and that changes the function of models which have it."""
    for key, value in _beyond(config, family).items():
        if _changes(key, value):
            raise CheckpointError(
                f"config.json: {key}: expected nothing, got {str(value)[:60]!r}; this is not supported for "
                f"{family.architecture} and might change the result"
            )


def keys_without_effect(config: Mapping[str, Any], family: Family) -> list[str]:
    """Names of keys that nothing here reads, in the order of the file."""
    decided = _CHANGES.keys() | _MUST_BE_TRUE
    unknown = [key for key in _beyond(config, family) if key not in decided and not _CHANGES_BY_NAME.search(key)]
    return unknown + rope_keys_without_effect(config, family)


def _beyond(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The keys that are set to something and that neither the family honours nor the list of harmless ones names."""
    known = SIZES | family.keys | set(family.rename.values()) | HARMLESS
    return {
        key: value
        for key, value in config.items()
        if key not in known and not _HARMLESS_BY_NAME.search(key) and (
            value is False if key in _MUST_BE_TRUE else not any(same(value, n) for n in _NEUTRAL)
        )
    }  # fmt: skip


def _changes(key: str, value: Any) -> bool:
    if key == "layer_types" and isinstance(value, list):
        return any(kind != "full_attention" for kind in value)
    if key in _MUST_BE_TRUE:
        return True
    if key in _CHANGES:
        return not any(same(value, neutral) for neutral in _CHANGES[key])
    return _CHANGES_BY_NAME.search(key) is not None and not any(same(value, neutral) for neutral in _NEUTRAL_BY_NAME)

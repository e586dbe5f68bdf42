"""Makes tests/golden/config_defaults.json: what transformers assumes where a config.json says nothing, family by family.

python tests/golden/make_config_defaults.py        (needs transformers)
"""

import json
from pathlib import Path

import transformers

CLASSES = {
    "LlamaForCausalLM": "LlamaConfig", "MistralForCausalLM": "MistralConfig", "Qwen2ForCausalLM": "Qwen2Config",
    "Qwen3ForCausalLM": "Qwen3Config", "SmolLM3ForCausalLM": "SmolLM3Config", "Phi3ForCausalLM": "Phi3Config",
    "GemmaForCausalLM": "GemmaConfig", "Gemma2ForCausalLM": "Gemma2Config", "Gemma3ForCausalLM": "Gemma3TextConfig",
    "Gemma3ForConditionalGeneration": "Gemma3Config", "Olmo2ForCausalLM": "Olmo2Config", "GraniteForCausalLM": "GraniteConfig",
    "GPT2LMHeadModel": "GPT2Config",
}  # fmt: skip
NAMES = {
    "hidden_size": "hidden_size", "num_hidden_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size", "n_inner": "intermediate_size", "vocab_size": "vocab_size",
    "num_key_value_heads": "num_key_value_heads", "head_dim": "head_dim", "rms_norm_eps": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps", "max_position_embeddings": "max_position_embeddings", "hidden_act": "activation",
    "hidden_activation": "activation", "activation_function": "activation", "tie_word_embeddings": "tie_word_embeddings",
    "sliding_window": "sliding_window", "layer_types": "layer_types", "rope_parameters": "rope_parameters",
    "attention_bias": "attention_bias", "mlp_bias": "mlp_bias", "query_pre_attn_scalar": "query_pre_attn_scalar",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_multiplier", "residual_multiplier": "residual_multiplier",
    "attention_multiplier": "attention_multiplier", "logits_scaling": "logits_scaling", "no_rope_layers": "no_rope_layers",
    "original_max_position_embeddings": "original_max_position_embeddings", "eos_token_id": "eos_token_id",
    "bos_token_id": "bos_token_id",
}  # fmt: skip


def defaults(name):
    config = getattr(transformers, name)()
    text = config.get_text_config()
    found = {new: getattr(text, old) for old, new in NAMES.items() if getattr(text, old, None) is not None}
    return found | {"tie_word_embeddings": config.tie_word_embeddings}


if __name__ == "__main__":
    table = {architecture: defaults(name) for architecture, name in CLASSES.items()}
    (Path(__file__).parent / "config_defaults.json").write_text(json.dumps(table, indent=1) + "\n")

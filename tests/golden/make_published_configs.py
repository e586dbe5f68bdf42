"""Makes tests/golden/published_configs.json: the config.json of models that people fine-tune, in small, with logits.

    python tests/golden/make_published_configs.py        (needs torch and transformers)

Keys are those of the published files, kept as they stand there; only sizes, ids and lengths are small. For each, transformers'
own class reads the file, and again the file that it writes itself. Weights are a function of a tensor's name and shape
(`weights_of_names.py`), so that only configs and logits are stored.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from weights_of_names import tensor  # noqa: E402

OUT = Path(__file__).parent / "published_configs.json"
VOCAB, TOKENS = 40, 20
COMMON = {"initializer_range": 0.02, "use_cache": True, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
SMALL = COMMON | {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "hidden_act": "silu",
}  # fmt: skip
LLAMA = SMALL | {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.40.0.dev0",
}  # fmt: skip
LLAMA31 = {
    "mlp_bias": False, "transformers_version": "4.43.0.dev0", "eos_token_id": [2, 3, 4],
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        "rope_type": "llama3",
    },
}  # fmt: skip
QWEN2 = SMALL | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "max_window_layers": 28,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32, "tie_word_embeddings": False, "use_mrope": False,
    "use_sliding_window": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
}  # fmt: skip
QWEN3 = SMALL | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
    "head_dim": 16, "max_window_layers": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
}  # fmt: skip
GEMMA = SMALL | {
    "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "attention_bias": False, "attention_dropout": 0.0,
    "head_dim": 16, "hidden_act": "gelu", "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.38.0.dev0",
}  # fmt: skip
GEMMA2 = GEMMA | {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 8,
    "transformers_version": "4.42.4",
}  # fmt: skip
GEMMA3 = SMALL | {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "cache_implementation": "hybrid", "eos_token_id": [1, 3], "final_logit_softcapping": None,
    "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "num_hidden_layers": 7, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 8, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
}  # fmt: skip
del GEMMA3["hidden_act"]
PHI3 = SMALL | {
    "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "model_type": "phi3",
    "attention_bias": False, "attention_dropout": 0.0, "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"
    }, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "original_max_position_embeddings": 64, "pad_token_id": 0,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 11, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.40.2",
}  # fmt: skip
MISTRAL = SMALL | {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 9, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
}  # fmt: skip
GRANITE = SMALL | {
    "architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_bias": False, "attention_dropout": 0.1,
    "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "mlp_bias": False,
    "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 5000000.0,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.47.0",
}  # fmt: skip
SMOLLM = {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True}
LONG = {"long_factor": [1.0, 2.0, 3.5], "short_factor": [1.0, 1.1, 1.2], "type": "longrope"}

CASES = {
    "Llama-3-8B": LLAMA,
    "Llama-3.1-8B": LLAMA | LLAMA31,
    "Llama-3.2-1B": LLAMA | LLAMA31 | {
        "head_dim": 8, "tie_word_embeddings": True, "rope_scaling": LLAMA31["rope_scaling"] | {"factor": 32.0}},
    "Llama-3.3-70B": LLAMA | LLAMA31 | {"head_dim": 8, "transformers_version": "4.47.0.dev0"},
    "DeepSeek-R1-Distill-Llama-8B": LLAMA | LLAMA31 | {"eos_token_id": 2},
    "TinyLlama-1.1B": LLAMA | {"rope_theta": 10000.0, "transformers_version": "4.35.0"},
    "SmolLM-135M": LLAMA | SMOLLM | {"rope_theta": 10000.0, "num_attention_heads": 4, "pad_token_id": None},
    "SmolLM2-135M": LLAMA | SMOLLM | {
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "pad_token_id": 2},
    "SmolLM3-3B": SMALL | {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False, "attention_dropout": 0.0,
        "layer_types": ["full_attention"] * 4, "max_window_layers": 28, "mlp_bias": False, "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4, "pad_token_id": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "torch_dtype": "bfloat16",
        "transformers_version": "4.54.0.dev0", "use_sliding_window": False},
    "Qwen2.5-0.5B": QWEN2 | {"tie_word_embeddings": True},
    "Qwen2.5-7B": QWEN2,
    "DeepSeek-R1-Distill-Qwen-7B": QWEN2 | {"rope_theta": 10000, "transformers_version": "4.44.0"},
    "Qwen3-0.6B": QWEN3 | {"tie_word_embeddings": True},
    "Qwen3-8B": QWEN3,
    "gemma-2b": GEMMA,
    "gemma-2b-it": GEMMA | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": None},
    "gemma-2-2b": GEMMA2,
    "gemma-3-1b": GEMMA3,
    "gemma-3-4b": {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 36, "eoi_token_index": 37,
        "eos_token_id": [1, 3], "image_token_index": 38, "initializer_range": 0.02, "mm_tokens_per_image": 1,
        "model_type": "gemma3",
        "text_config": {
            "head_dim": 16, "hidden_size": 32, "intermediate_size": 40, "model_type": "gemma3_text", "num_hidden_layers": 7,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 8, "vocab_size": VOCAB,
            "max_position_embeddings": 64},
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": {
            "hidden_size": 8, "image_size": 4, "intermediate_size": 12, "model_type": "siglip_vision_model",
            "num_attention_heads": 2, "num_hidden_layers": 1, "patch_size": 2, "vision_use_head": False}},
    "Phi-3-mini-4k": PHI3,
    "Phi-3.5-mini": PHI3 | {
        "_name_or_path": "Phi-3.5-mini-instruct", "original_max_position_embeddings": 32, "sliding_window": 64,
        "rope_scaling": LONG | {"long_factor": [1.0, 1.5, 2.0, 3.5], "short_factor": [1.0, 1.0, 1.1, 1.2]}},
    "Phi-4": PHI3 | {"rope_theta": 250000, "sliding_window": None, "transformers_version": "4.47.0"},
    "Phi-4-mini": PHI3 | {
        "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "num_attention_heads": 4,
        "original_max_position_embeddings": 16, "partial_rotary_factor": 0.75, "rope_scaling": LONG, "sliding_window": 64,
        "tie_word_embeddings": True, "transformers_version": "4.45.0"},
    "Mistral-7B-v0.1": MISTRAL,
    "Mistral-7B-v0.3": MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0},
    "Mistral-Nemo": MISTRAL | {"head_dim": 12, "rope_theta": 1000000.0, "sliding_window": None},
    "granite-3.1-2b": GRANITE,
    "granite-3.3-8b": GRANITE | {"rope_theta": 10000000.0, "tie_word_embeddings": False, "logits_scaling": 16.0},
    "OLMo-2-1B": SMALL | {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attention_bias": False, "attention_dropout": 0.0,
        "num_key_value_heads": 4, "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000,
        "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.47.0"},
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 1,
        "embd_pdrop": 0.1, "eos_token_id": 1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": VOCAB},
}  # fmt: skip


def logits_of(folder, ids):
    config = transformers.AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    torch.set_default_dtype(torch.float32)
    model = getattr(transformers, config.architectures[0])._from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(tensor(name, tuple(parameter.shape), "gemma" in config.model_type)))
        logits = model(ids).logits[0].numpy()
    model.config.save_pretrained(folder / "again")
    return logits, json.loads((folder / "again" / "config.json").read_text())


def record(values):
    ids = torch.tensor(np.random.default_rng(5).integers(3, VOCAB, TOKENS)[None])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(values))
        logits, rewritten = logits_of(folder, ids)
        again, _ = logits_of(folder / "again", ids)
    assert np.array_equal(logits, again)
    return {
        "published": values, "rewritten": rewritten, "ids": ids[0].tolist(),
        "logits": [[round(float(x), 5) for x in row] for row in logits[3::8]],
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    records = {name: json.dumps(record(values), separators=(",", ":")) for name, values in CASES.items()}
    text = ",\n".join(f"{json.dumps(name)}: {values}" for name, values in records.items())
    OUT.write_text("{" + text + "}\n")
    print(OUT.stat().st_size, "bytes,", len(CASES), "configs")

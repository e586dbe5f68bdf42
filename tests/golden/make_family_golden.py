"""Makes tests/golden/families/*.npz: tiny random models of every family with what transformers and PEFT compute for them.

    python tests/golden/make_family_golden.py        (needs torch, transformers and peft)

Each file holds the model folder (config.json as text, tensors in bfloat16 bits so that they stay small; the golden values
are those of the same numbers in float32), logits and a greedy continuation of `ids`, and for each family the loss gradients
of a LoRA adapter on every linear layer whose A and B are both not zero. Tests read these files with NumPy alone.
"""

import json
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file

OUT = Path(__file__).parent / "families"
TOKENS, NEW, RANK, VOCAB = 40, 12, 4, 64
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SCALED = {"original_max_position_embeddings": 24}
LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.2, 2.5, 4.0], "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
}  # fmt: skip

# name: (configuration class, changes to SIZES)
CASES = {
    "llama": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama_llama3": ("LlamaConfig", {"rope_parameters": SCALED | {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
    "llama_linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama_dynamic": ("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}}),
    "llama_yarn": ("LlamaConfig", {"rope_parameters": SCALED | {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}}),
    "mistral": ("MistralConfig", {"sliding_window": 9, "head_dim": 12}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 11}),
    "phi3": ("Phi3Config", {"sliding_window": 13, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}),
    "phi3_longrope": ("Phi3Config", SCALED | {"rope_parameters": LONG}),
    "phi3_longrope_switch": ("Phi3Config", {"original_max_position_embeddings": 45, "rope_parameters": LONG}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24,
                                "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", {"num_hidden_layers": 3, "head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24,
                                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                                    "rope_parameters": {
                                        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                                        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"attention_bias": True, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
                                  "attention_multiplier": 0.2, "logits_scaling": 2.5}),
    "gpt2": ("GPT2Config", {}),
    "gemma3_conditional": ("Gemma3Config", {"num_hidden_layers": 2, "head_dim": 16, "sliding_window": 9,
                                            "layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip
# These differ from the family's own case in what rotates queries and keys: logits and greedy text are enough.
FORWARD_ONLY = {name for name in CASES if "_" in name} - {"phi3_longrope", "gemma3_conditional"}
VISION = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 4, "patch_size": 2,
}  # fmt: skip


def config_of(name):
    kind, changes = CASES[name]
    values = SIZES | changes
    if kind == "GPT2Config":
        values = {
            "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "n_inner": 40,
            "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }  # fmt: skip
    if kind == "Gemma3Config":  # a text model in a model of texts and images
        return transformers.Gemma3Config(
            text_config=values, vision_config=VISION, mm_tokens_per_image=1, image_token_index=60, boi_token_index=61,
            eoi_token_index=62, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
    return getattr(transformers, kind)(**values)


def random_model(name, seed):
    """Weights large enough that every part matters, rounded to bfloat16 so that the file can be small."""
    generator = torch.Generator().manual_seed(seed)
    config = config_of(name)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            vector = parameter.ndim == 1
            size = 0.2 if vector else 1.5 / parameter.shape[-1] ** 0.5
            around = 1.0 if vector and key.endswith("weight") and not name.startswith("gemma") else 0.0
            values = around + size * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values.to(torch.bfloat16).float())
    return model.eval()


def record(name, seed):
    model = random_model(name, seed)
    rng = np.random.default_rng(seed)
    ids = torch.tensor(rng.integers(3, VOCAB, TOKENS)[None])
    out = {"ids": ids[0].numpy().astype(np.int32)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        out["config"] = np.frombuffer((Path(folder) / "config.json").read_bytes(), np.uint8)
        for key, array in load_file(Path(folder) / "model.safetensors").items():
            rounded = array.astype(ml_dtypes.bfloat16)
            assert np.array_equal(rounded.astype(np.float32), array), key
            out["tensor." + key] = rounded.view(np.uint16)
    with torch.no_grad():
        out["logits"] = model(ids).logits[0].numpy()
        greedy = ids
        for _ in range(NEW):  # without a cache: every step is a whole forward pass
            greedy = torch.cat([greedy, model(greedy).logits[:, -1].argmax(-1, keepdim=True)], 1)
    out["greedy"] = greedy[0, TOKENS:].numpy().astype(np.int32)
    if name not in FORWARD_ONLY:
        out |= adapted(model, ids, seed)
    OUT.mkdir(exist_ok=True)
    np.savez_compressed(OUT / f"{name}.npz", **out)
    size = (OUT / f"{name}.npz").stat().st_size
    print(f"{name:20} {size:8} bytes, {json.loads(bytes(out['config']))['architectures']}")


def adapted(model, ids, seed):
    """Loss and gradients with an adapter on every linear layer."""
    out = {}
    targets = r"model\.language_model\..*_proj" if hasattr(model.config, "text_config") else "all-linear"
    peft = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_" in key:
                parameter.copy_((0.2 * torch.randn(parameter.shape, generator=generator)).to(torch.bfloat16).float())
    logits = peft(ids).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    loss.backward()
    out["loss"] = np.float64(loss.item())
    for key, parameter in peft.named_parameters():
        if "lora_" in key:
            short = key.replace(".default", "")
            out["adapter." + short] = parameter.detach().numpy().astype(ml_dtypes.bfloat16).view(np.uint16)
            out["grad." + short] = parameter.grad.numpy()
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, case in enumerate(CASES):
        if len(sys.argv) == 1 or case in sys.argv[1:]:
            record(case, 100 + number)

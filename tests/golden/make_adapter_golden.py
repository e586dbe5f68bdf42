"""Adapters written by PEFT on two tiny random Llamas, with the logits that PEFT computes and five training steps each.

Usage: PYTHON_WITH_PEFT tests/golden/make_adapter_golden.py     (torch, transformers, peft)
Writes tests/golden/adapters/: biased/ and tied/ (base models), one folder per adapter, golden.npz with `ids`,
`<adapter>.logits`, and for those in TRAINED `<adapter>.losses` and `<adapter>.grad.<key>` of the first step. Those in
CONVERTED changed their base: their folder holds the adapter of twice the rank for the original base, and
`<adapter>.start.<module>` is s B A as it was drawn.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parent / "adapters"
IDS = torch.tensor([(7 * i + 3) % 48 for i in range(18)])
SIZES = {
    "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 48, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
BASES = {
    "biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "tied": {"tie_word_embeddings": True},
}
ATTENTION = ["q_proj", "v_proj"]
# adapter: (base, LoraConfig options)
ADAPTERS: dict[str, tuple[str, dict]] = {
    "defaults": ("tied", {}),
    "rslora": ("tied", {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["o_proj", "up_proj"]}),
    "patterns": ("biased", {
        "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"q_proj": 3, "^model.layers.1.self_attn.k_proj": 1},
        "alpha_pattern": {r".*\.2\..*": 5, "down_proj": 7},
    }),
    "dora": ("biased", {"r": 2, "lora_alpha": 3, "use_dora": True, "target_modules": ["q_proj", "o_proj", "gate_proj"]}),
    "dora_rslora": ("tied", {"r": 3, "lora_alpha": 4, "use_dora": True, "use_rslora": True, "lora_dropout": 0.1,
                             "target_modules": ["v_proj", "down_proj"]}),
    "bias_all": ("biased", {"r": 2, "bias": "all", "target_modules": ATTENTION}),
    "bias_lora_only": ("biased", {"r": 2, "bias": "lora_only", "target_modules": ["k_proj", "up_proj"]}),
    "save_head": ("biased", {"r": 2, "modules_to_save": ["lm_head"], "target_modules": ATTENTION}),
    "save_head_tied": ("tied", {"r": 2, "modules_to_save": ["lm_head"], "target_modules": ATTENTION}),
    "save_embedding_tied": ("tied", {"r": 2, "modules_to_save": ["embed_tokens"], "target_modules": ATTENTION}),
    "save_both_tied": ("tied", {"r": 2, "modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ATTENTION}),
    "save_norms": ("biased", {"r": 2, "modules_to_save": ["norm"], "target_modules": ATTENTION}),
    "save_projection": ("biased", {"r": 2, "modules_to_save": ["down_proj"], "target_modules": ["up_proj", "down_proj"]}),
    "tokens": ("biased", {"r": 2, "trainable_token_indices": [3, 17, 40], "target_modules": ATTENTION}),
    "tokens_tied": ("tied", {"r": 2, "trainable_token_indices": {"embed_tokens": [24, 5]}, "target_modules": ATTENTION}),
    "layers": ("tied", {"r": 2, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2],
                        "layers_pattern": "layers"}),
    "regex": ("tied", {"r": 2, "target_modules": r".*\.[12]\.(self_attn\.(q|k)_proj|mlp\.down_proj)"}),
    "exclude": ("tied", {"r": 2, "target_modules": "all-linear", "exclude_modules": r".*\.(0\.mlp|2\.self_attn)\..*"}),
    "unmatched": ("tied", {"r": 2, "target_modules": ["q_proj", "query_key_value"], "init_lora_weights": "gaussian"}),
}  # fmt: skip
TRAINED = ("dora", "dora_rslora", "bias_all", "bias_lora_only", "save_head_tied", "save_embedding_tied", "save_norms",
           "save_projection", "tokens", "tokens_tied", "patterns")  # fmt: skip


CONVERTED: dict[str, tuple[str, dict]] = {
    "pissa": ("tied", {"r": 3, "lora_alpha": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj", "down_proj"]}),
    "olora": ("biased", {"r": 2, "lora_alpha": 6, "use_rslora": True, "init_lora_weights": "olora",
                         "target_modules": ["o_proj", "up_proj"]}),
}  # fmt: skip


def make_base(name: str) -> Path:
    torch.manual_seed(len(name))
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **BASES[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.add_(1)
    model.save_pretrained(OUT / name)
    (OUT / name / "generation_config.json").unlink(missing_ok=True)
    return OUT / name


def fresh(base: str, options: dict) -> PeftModel:
    torch.manual_seed(11)
    model = LlamaForCausalLM.from_pretrained(OUT / base, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))


def randomize(model: PeftModel) -> None:
    """Every trained value moves, so that no part of a file can be left unread."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def logits(model: PeftModel) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS[None]).logits[0].numpy()


def train(model: PeftModel) -> dict[str, np.ndarray]:
    """Five AdamW steps over one sequence; dropout is off, so that the record does not depend on a generator."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01)
    record: dict[str, np.ndarray] = {}
    losses = []
    for step in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=IDS[None], labels=IDS[None]).loss
        loss.backward()
        if step == 0:
            grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            kept = get_peft_model_state_dict(model, state_dict={**model.state_dict(), **grads})
            trained = {id(g) for g in grads.values()}
            record |= {f"grad.{k}": g.numpy().copy() for k, g in kept.items() if id(g) in trained}
        optimizer.step()
        losses.append(loss.item())
    return record | {"losses": np.array(losses)}


def make_converted(name: str, base: str, options: dict) -> dict[str, np.ndarray]:
    model = fresh(base, options)
    record = {}
    for path, module in model.named_modules():
        if path.endswith(tuple(options["target_modules"])) and ".1." in path:
            record["start." + path.removeprefix("base_model.model.")] = module.get_delta_weight("default").detach().numpy()
    initial = OUT / "initial"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(initial)
    model.peft_config["default"].init_lora_weights = options["init_lora_weights"]
    randomize(model)
    record["logits"] = logits(model)
    model.save_pretrained(OUT / name, path_initial_model_for_weight_conversion=initial)
    shutil.rmtree(initial)
    clean(name, base)
    return record


def clean(name: str, base: str) -> None:
    (OUT / name / "README.md").unlink()
    config = OUT / name / "adapter_config.json"
    config.write_text(config.read_text().replace(str(OUT / base), base))


def main() -> None:
    warnings.simplefilter("ignore")
    shutil.rmtree(OUT, ignore_errors=True)
    for base in BASES:
        make_base(base)
    record: dict[str, np.ndarray] = {"ids": IDS.numpy()}
    for name, (base, options) in ADAPTERS.items():
        model = fresh(base, options)
        randomize(model)
        model.save_pretrained(OUT / name)
        clean(name, base)
        record[f"{name}.logits"] = logits(model)
        if name in TRAINED:
            record |= {f"{name}.{key}": value for key, value in train(model).items()}
    for name, (base, options) in CONVERTED.items():
        record |= {f"{name}.{key}": value for key, value in make_converted(name, base, options).items()}
    np.savez_compressed(OUT / "golden.npz", **record)


if __name__ == "__main__":
    main()

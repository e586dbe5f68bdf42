"""Prompt tuning and prefix tuning by PEFT on the tiny models of tests/golden/families: logits, loss, gradients, and folders.

    python tests/golden/make_prompt_golden.py        (needs torch, transformers and peft)

Writes tests/golden/prompts/: families.npz (for every family `<family>.<kind>.values`, in bfloat16 bits, `.logits` of the first
tokens, `.loss` and `.grad` of the values), stacked.npz (the same beside the LoRA adapter of the record, with gradients
of that), the folders prompt, prefix and projection (as PEFT saves them, for tests/golden/adapters/tied), and golden.npz with
what PEFT computes with those: `<folder>.logits`; for projection also `.param.<name>` and `.grad.<name>` of what makes it, and
`text`, the start of a prompt on the demonstration's model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, DynamicCache

HERE = Path(__file__).parent
OUT = HERE / "prompts"
DEMO = HERE.parents[1] / "python" / "lora_c" / "base_model"
N, SHOWN = 6, 12  # virtual tokens; tokens whose logits are kept, the first ones: behind a window none is seen
STACKED = ("llama", "qwen3", "gemma3", "gpt2")
KINDS = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}
TIED_IDS = torch.tensor([(7 * i + 3) % 48 for i in range(18)])[None]
TEXT = "Answer in one short sentence."


def base_of(record: dict[str, np.ndarray]) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(record["config"].tobytes())
        tensors = {key[7:]: from_bits(value) for key, value in record.items() if key.startswith("tensor.")}
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def from_bits(bits: np.ndarray) -> np.ndarray:
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)


def draw(parameter: torch.Tensor, generator: torch.Generator, scale: float) -> None:
    with torch.no_grad():
        drawn = scale * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn.to(torch.bfloat16).float())


def entry(values: torch.Tensor, logits: torch.Tensor, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """What is kept of a pass; logits are those of the real tokens."""
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    loss.backward()
    return {
        "values": values.detach().numpy().astype(ml_dtypes.bfloat16).view(np.uint16),
        "logits": logits.detach().numpy()[:SHOWN],
        "loss": np.float64(loss.item()),
        "grad": values.grad.numpy(),
    }


def alone(record: dict[str, np.ndarray], kind: str, seed: int) -> dict[str, np.ndarray]:
    ids = torch.tensor(record["ids"], dtype=torch.long)[None]
    model = get_peft_model(base_of(record), KINDS[kind](task_type="CAUSAL_LM", num_virtual_tokens=N)).eval()
    values = model.prompt_encoder["default"].embedding.weight
    draw(values, torch.Generator().manual_seed(seed), 0.8)
    return entry(values, model(input_ids=ids).logits[0, -ids.shape[1] :], ids)


def stacked(record: dict[str, np.ndarray], kind: str, seed: int) -> dict[str, np.ndarray]:
    """A LoRA model that is given the prompt, or the cache, by hand."""
    ids = torch.tensor(record["ids"], dtype=torch.long)[None]
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base_of(record), config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.tensor(from_bits(record["adapter." + key.replace(".default", "")])))
    base = model.get_base_model()
    sizes = base.config
    heads = getattr(sizes, "num_key_value_heads", None) or sizes.num_attention_heads
    head_dim = getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
    layers = sizes.num_hidden_layers
    width = sizes.hidden_size if kind == "prompt" else layers * 2 * heads * head_dim
    values = torch.empty(N, width)
    draw(values, torch.Generator().manual_seed(seed), 0.8)
    values.requires_grad_(True)
    if kind == "prompt":
        given = torch.cat([values[None], base.get_input_embeddings()(ids)], 1)
        logits = model(inputs_embeds=given).logits[0, N:]
    else:
        cache = DynamicCache(config=sizes)
        for layer, (k, v) in enumerate(values.view(1, N, layers * 2, heads, head_dim).permute(2, 0, 3, 1, 4).split(2)):
            cache.update(k, v, layer)
        logits = model(input_ids=ids, past_key_values=cache).logits[0]
    out = entry(values, logits, ids)
    for key, parameter in model.named_parameters():
        if "lora_" in key and ".0." in key:
            out["grad." + key.replace(".default", "")] = parameter.grad.numpy()
    return out


def folders() -> dict[str, np.ndarray]:
    out = {}
    configs = {
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "projection": PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7
        ),
    }
    for name, config in configs.items():
        torch.manual_seed(5)
        base = AutoModelForCausalLM.from_pretrained(HERE / "adapters" / "tied", dtype=torch.float32)
        model = get_peft_model(base, config).eval()
        parameters = dict(model.prompt_encoder["default"].named_parameters())
        logits = model(input_ids=TIED_IDS).logits[0, -TIED_IDS.shape[1] :]
        out[f"{name}.logits"] = logits.detach().numpy()
        if name == "projection":
            torch.nn.functional.cross_entropy(logits[:-1], TIED_IDS[0, 1:]).backward()
            out |= {f"{name}.param.{key}": p.detach().numpy() for key, p in parameters.items()}
            out |= {f"{name}.grad.{key}": p.grad.numpy() for key, p in parameters.items()}
        model.peft_config["default"].base_model_name_or_path = "tied"
        model.save_pretrained(OUT / name)
        (OUT / name / "README.md").unlink(missing_ok=True)
    text = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=14, prompt_tuning_init="TEXT", prompt_tuning_init_text=TEXT,
        tokenizer_name_or_path=str(DEMO),
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(DEMO), text)
    out["text"] = model.prompt_encoder["default"].embedding.weight.detach().numpy()
    return out


def main() -> None:
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    families, both = {}, {}
    for number, path in enumerate(sorted((HERE / "families").glob("*.npz"))):
        with np.load(path) as file:
            record = dict(file)
        for i, kind in enumerate(KINDS):
            seed = 500 + 2 * number + i
            families |= {f"{path.stem}.{kind}.{key}": value for key, value in alone(record, kind, seed).items()}
            if path.stem in STACKED:
                both |= {f"{path.stem}.{kind}.{key}": value for key, value in stacked(record, kind, seed).items()}
        print(path.stem)
    np.savez_compressed(OUT / "families.npz", **families)
    np.savez_compressed(OUT / "stacked.npz", **both)
    np.savez_compressed(OUT / "golden.npz", **folders())


if __name__ == "__main__":
    main()

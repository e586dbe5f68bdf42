"""LoRA+ by PEFT on the tiny models of tests/golden/families: five steps of its optimizer.

    python tests/golden/make_loraplus_golden.py        (needs torch, transformers and peft)

Writes tests/golden/loraplus.npz: for each family `<family>.losses` (before each step) and `<family>.<tensor>` (after the last
one), of the LoRA adapter of the record.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
FAMILIES = ("llama", "qwen3", "gemma3", "gpt2")
STEPS, LR, RATIO, DECAY = 5, 1e-2, 8.0, 0.1


def from_bits(bits: np.ndarray) -> np.ndarray:
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)


def base_of(record: dict[str, np.ndarray]) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(record["config"].tobytes())
        tensors = {key[7:]: from_bits(value) for key, value in record.items() if key.startswith("tensor.")}
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def trained(record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids = torch.tensor(record["ids"], dtype=torch.long)[None]
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base_of(record), config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.tensor(from_bits(record["adapter." + key.replace(".default", "")])))
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY, betas=(0.9, 0.999), eps=1e-8
    )
    losses = []
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    kept = {key.replace(".default", ""): p.detach().numpy() for key, p in model.named_parameters() if "lora_" in key}
    return {"losses": np.array(losses), **kept}


def main() -> None:
    out = {}
    for name in FAMILIES:
        record = dict(np.load(HERE / "families" / f"{name}.npz"))
        out |= {f"{name}.{key}": value for key, value in trained(record).items()}
    np.savez_compressed(HERE / "loraplus.npz", **out)


if __name__ == "__main__":
    main()

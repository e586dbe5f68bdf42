"""Makes tests/golden/fused_dora.npz: DoRA on modules that hold several matrices, as PEFT computes it.

    python tests/golden/make_fused_dora_golden.py        (needs torch, transformers and peft)

The models are those of families/phi3.npz (qkv_proj, gate_up_proj) and families/gpt2.npz (c_attn, stored as (in, out)). Keys
are "<family>.adapter.<tensor>" (A, B and magnitude, none of them where training starts), "<family>.grad.<tensor>",
"<family>.loss" and "<family>.logits".
"""

from pathlib import Path

import numpy as np
import torch
from make_family_golden import CASES, RANK, random_model
from peft import LoraConfig, get_peft_model

MODULES = {"phi3": ["qkv_proj", "gate_up_proj"], "gpt2": ["c_attn"]}


def record(name):
    seed = 100 + list(CASES).index(name)
    model = random_model(name, seed)
    with np.load(Path(__file__).parent / "families" / f"{name}.npz") as file:
        ids = torch.tensor(file["ids"].astype(np.int64)[None])
        with torch.no_grad():
            assert np.array_equal(model(ids).logits[0].numpy(), file["logits"])  # the same model
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=MODULES[name], use_dora=True, fan_in_fan_out=name == "gpt2")
    peft = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "magnitude" in key:
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
            elif "lora_" in key:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    logits = peft(ids).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    loss.backward()
    out = {"logits": logits.detach().numpy(), "loss": np.float64(loss.item())}
    for key, parameter in peft.named_parameters():
        if "lora_" in key:
            short = key.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
            out["adapter." + short] = parameter.detach().numpy()
            out["grad." + short] = parameter.grad.numpy()
    return {f"{name}.{key}": value for key, value in out.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    records = {key: value for name in MODULES for key, value in record(name).items()}
    path = Path(__file__).parent / "fused_dora.npz"
    np.savez_compressed(path, **records)
    print(path.stat().st_size, "bytes", sorted(records))

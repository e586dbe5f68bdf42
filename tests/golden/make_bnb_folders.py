"""Make bnb_folders.npz: model folders that transformers and bitsandbytes quantized to 4 bits, and their logits.

Needs torch, transformers and bitsandbytes (not needed by the tests themselves): python tests/golden/make_bnb_folders.py

Keys, per variant: `<variant>/config.json`, `<variant>/model.safetensors` (the bytes of the files), `<variant>/logits` (tokens,
vocabulary) of `ids`. The logits are those of a dense float32 model whose matrices hold the decoded values in float32,
because the peer rounds them to the compute type, and because its AVX-512 decoder takes wrong scales where blocks cross
row ends.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import bitsandbytes.functional as F
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

IDS = np.array([1, 5, 9, 2, 30, 7, 7, 12, 3, 25, 31, 4], np.int64)
SIZES = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 32, "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# The sizes are no multiples of the block on purpose: blocks cross row ends.
VARIANTS: dict[str, dict[str, Any]] = {
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "nf4_nested_bfloat16_storage": {
        "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "fp4_float16": {"bnb_4bit_quant_type": "fp4", "dtype": torch.float16},
    "fp4_nested_float32_storage": {
        "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": torch.float32,
    },
    "nf4_skipped_modules": {
        "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp.down_proj", "q_proj"],
    },
    "nf4_block_per_weight": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}  # fmt: skip


def quantized(dense: Path, out: Path, variant: str) -> None:
    """Save the variant's folder; where blocks differ, one weight is packed by bitsandbytes with a block of 128."""
    options = dict(VARIANTS[variant])
    dtype = options.pop("dtype", torch.bfloat16)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **options)
    transformers.AutoModelForCausalLM.from_pretrained(dense, quantization_config=config, dtype=dtype).save_pretrained(out)
    if variant == "nf4_block_per_weight":
        name = "model.layers.0.mlp.up_proj.weight"
        weight = load_file(dense / "model.safetensors")[name].to(dtype)
        codes, state = F.quantize_4bit(weight, blocksize=128, quant_type="nf4", compress_statistics=True)
        tensors = {k: v for k, v in load_file(out / "model.safetensors").items() if not k.startswith(name)}
        tensors |= {name: codes} | {f"{name}.{k}": v for k, v in state.as_dict(packed=True).items()}
        save_file(tensors, out / "model.safetensors", {"format": "pt"})


def decode(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """One matrix by the definition of the format, in float32."""
    kind = next(k for k in ("nf4", "fp4") if f"{name}.quant_state.bitsandbytes__{k}" in tensors)
    state = json.loads(bytes(tensors[f"{name}.quant_state.bitsandbytes__{kind}"].tolist()))
    codes = tensors[name].contiguous().view(torch.uint8).flatten()
    count = state["shape"][0] * state["shape"][1]
    index = torch.stack([codes >> 4, codes & 15], 1).flatten()[:count].long()
    absmax = tensors[f"{name}.absmax"]
    if "nested_offset" in state:
        nested = tensors[f"{name}.nested_absmax"][torch.arange(absmax.numel()) // state["nested_blocksize"]]
        absmax = tensors[f"{name}.nested_quant_map"][absmax.long()] * nested + state["nested_offset"]
    values = tensors[f"{name}.quant_map"][index] * absmax[torch.arange(count) // state["blocksize"]]
    return values.reshape(state["shape"])


def reference_logits(folder: Path) -> np.ndarray:
    """Logits of a dense float32 Llama with the decoded weights."""
    tensors = load_file(folder / "model.safetensors")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    state = {}
    for name, value in model.state_dict().items():
        state[name] = tensors[name].float() if tensors[name].shape == value.shape else decode(name, tensors)
    model.load_state_dict(state)
    with torch.no_grad():
        return model(torch.from_numpy(IDS)[None]).logits[0].numpy()


def main() -> None:
    record: dict[str, np.ndarray] = {"ids": IDS.astype(np.int32)}
    with tempfile.TemporaryDirectory() as root:
        dense = Path(root, "dense")
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(dense)
        for variant in VARIANTS:
            folder = Path(root, variant)
            quantized(dense, folder, variant)
            for name in ("config.json", "model.safetensors"):
                record[f"{variant}/{name}"] = np.frombuffer((folder / name).read_bytes(), np.uint8)
            record[f"{variant}/logits"] = reference_logits(folder)
    path = Path(__file__).with_name("bnb_folders.npz")
    np.savez_compressed(path, **record)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

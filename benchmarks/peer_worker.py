"""The peer of bench_peers.py: transformers + PEFT + bitsandbytes, in a virtual environment of its own.

Reads one command a line and answers with one JSON line: "step" trains a step and gives its seconds, "memory" gives the peak
resident bytes since the model was loaded, "end" ends. The first line that it writes says what it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from shapes import SHAPES, peak_resident_bytes, reset_peak_resident


def quantized_model(shape: str, checkpointing: bool) -> torch.nn.Module:
    """Random weights of the shape, in NF4 with double quantization, bfloat16 compute, with a LoRA on every linear layer."""
    values = {k: v for k, v in SHAPES[shape].items() if k != "architectures"}
    config = transformers.AutoConfig.for_model(**values)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(Path(folder))
        nf4 = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=nf4, dtype=torch.bfloat16, device_map={"": "cpu"}
        )
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = quantized_model(args.shape, args.checkpointing)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.randint(0, SHAPES[args.shape]["vocab_size"], (args.batch, args.length))

    def step() -> float:
        begin = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return time.perf_counter() - begin

    reset_peak_resident()
    what = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps({"ready": what, "trained": sum(p.numel() for p in trained)}), flush=True)
    for line in sys.stdin:
        if line.strip() == "step":
            print(json.dumps({"seconds": step()}), flush=True)
        elif line.strip() == "memory":
            print(json.dumps({"bytes": peak_resident_bytes()}), flush=True)
        else:
            break


if __name__ == "__main__":
    main()

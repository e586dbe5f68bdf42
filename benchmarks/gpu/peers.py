"""transformers + PEFT + bitsandbytes on the shapes that lora-c is measured with: what there is to compare with.

Usage: python peers.py TASK DEVICE [tiny]
TASK is what part_peers.py makes: {shape: {"config": ..., "sizes": [[batch, length]]}}

Rows:  H0  as most people run it: prepare_model_for_kbit_training, gradient checkpointing
       H1  H0 with Liger's kernels
       H2  without casts to float32, without checkpointing
       H3  H2 with torch.compile
The same model, tokens and adapters as lora-c's; autocast to bfloat16, fused AdamW, clipping at 1. Compare like with like:
H0 and H1 with recompute=layer, H2 and H3 with none.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from common import emit, row_of

NEEDED = ("torch", "transformers", "peft", "bitsandbytes")
RANK, WARM, TIMED = 16, 5, 15
DECODED = 128
OP_SHAPES = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (28672, 8192))
OP_TOKENS = (1, 2, 4, 8, 16, 64, 2048, 4096)


def quantized(weight: Any, device: str) -> Any:
    """A matrix as bitsandbytes keeps it: NF4 with double quantization."""
    import bitsandbytes as bnb

    made = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
    return made.to(device)


def linear_4bit(linear: Any, device: str) -> Any:
    """The layer of these sizes with random weights."""
    import bitsandbytes as bnb
    import torch

    shape = (linear.out_features, linear.in_features)
    made = bnb.nn.Linear4bit(
        shape[1], shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=True, device="meta"
    )
    made.weight = quantized(torch.randn(shape, device=device, dtype=torch.bfloat16) * shape[1] ** -0.5, device)
    return made


def build(config: dict[str, Any], device: str) -> Any:
    """A Llama with random weights, made on the device: projections in NF4, the rest in bfloat16."""
    import torch
    import transformers

    values = {name: value for name, value in config.items() if name != "architectures"}
    settings = transformers.AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16, attn_implementation="sdpa")
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            model.set_submodule(name, linear_4bit(module, device))
    for name, parameter in list(model.named_parameters()):
        if parameter.device.type == "meta":
            shape, made = parameter.shape, torch.empty(parameter.shape, device=device, dtype=torch.bfloat16)
            torch.nn.init.ones_(made) if len(shape) == 1 else torch.nn.init.normal_(made, std=0.02)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(made, requires_grad=False))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=settings).to(device)
    model.is_loaded_in_4bit = model.is_quantized = True
    return model


def adapted(config: dict[str, Any], device: str, mode: str) -> Any:
    """The model with its adapter, as the row has it."""
    import peft
    import torch

    if mode == "H1":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    model = build(config, device)
    model.config.use_cache = False
    if mode in ("H0", "H1"):
        model = peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, lora).train()
    return torch.compile(model) if mode == "H3" else model


def seconds_of(action: Callable[[], Any], device: str) -> float:
    """Of one call, by the device's own clock."""
    import torch

    if device != "cuda":
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    action()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def train(model: Any, vocab: int, batch: int, length: int, device: str, repeats: tuple[int, int]) -> dict[str, Any]:
    """Steps of training on random tokens."""
    import torch

    ids = torch.randint(0, vocab, (batch, length), device=device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.detach())

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [seconds_of(step, device) for _ in range(sum(repeats))][repeats[0] :]
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    median = statistics.median(seconds)
    values = {"tokens_per_second": batch * length / median, "step_seconds": seconds, "peak_memory_bytes": peak}
    return values | {"trainable": sum(p.numel() for p in trained), "losses": [float(loss) for loss in losses]}


def release() -> None:
    """Give the memory of the last model back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train_rows(shape: str, task: dict[str, Any], device: str, tiny: bool, modes: tuple[str, ...]) -> None:
    """Each way at each size."""
    repeats = (1, 1) if tiny else (WARM, TIMED)
    for mode in modes:
        if mode == "H1" and importlib.util.find_spec("liger_kernel") is None:
            emit(mode=mode, shape=shape, absent=["liger_kernel"])
            continue
        model = None
        for batch, length in task["sizes"]:
            with row_of(mode=mode, shape=shape, batch=batch, length=length, rank=RANK) as row:
                model = adapted(task["config"], device, mode) if model is None else model
                row |= train(model, task["config"]["vocab_size"], batch, length, device, repeats)
            release()
        del model
        release()


def decode_row(shape: str, task: dict[str, Any], device: str, tiny: bool) -> None:
    """Greedy tokens of one sequence by generate() with a static cache."""
    import torch

    tokens = 3 if tiny else DECODED
    with row_of(mode="decode", shape=shape, tokens=tokens) as row, torch.inference_mode():
        model = build(task["config"], device).eval()
        ids = torch.zeros((1, 1), dtype=torch.long, device=device)
        options = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, "cache_implementation": "static"}
        seconds = [seconds_of(lambda: model.generate(ids, pad_token_id=0, **options), device) for _ in range(2 if tiny else 4)]
        row["tokens_per_second"] = tokens / min(seconds[1:])
    release()


def op_rows(device: str, tiny: bool) -> None:
    """Dequantizing, and bitsandbytes' product beside the bfloat16 one."""
    import bitsandbytes.functional as functional
    import torch

    for rows, cols in ((64, 64),) if tiny else OP_SHAPES:
        weight = torch.randn(rows, cols, device=device, dtype=torch.bfloat16) * cols**-0.5
        codes, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        actions = {"dequantize_4bit": lambda codes=codes, state=state: functional.dequantize_4bit(codes, state)}
        for tokens in (1, 4) if tiny else OP_TOKENS:
            x = torch.randn(tokens, cols, device=device, dtype=torch.bfloat16)
            actions[f"matmul_4bit {tokens}"] = lambda x=x, codes=codes, state=state: _matmul(x, codes, state)
            actions[f"linear {tokens}"] = lambda x=x, weight=weight: torch.nn.functional.linear(x, weight)
        for what, action in actions.items():
            with row_of(mode="op", what=what, out=rows, inner=cols) as row, torch.inference_mode():
                times = [seconds_of(action, device) for _ in range(3 if tiny else 30)]
                row["microseconds"] = 1e6 * statistics.median(times[len(times) // 3 :])


def _matmul(x: Any, codes: Any, state: Any) -> Any:
    import bitsandbytes as bnb

    return bnb.matmul_4bit(x, codes.t(), quant_state=state)


def main() -> None:
    """All rows that this Python can run."""
    task, device, tiny = json.loads(sys.argv[1]), sys.argv[2], "tiny" in sys.argv[3:]
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        emit(absent=absent, python=sys.executable)
        return
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        emit(absent=["a GPU that torch can use"], python=sys.executable)
        return
    emit(versions={name: version(name) for name in NEEDED}, device=device)
    torch.manual_seed(0)
    op_rows(device, tiny)
    for shape, of in task.items():
        train_rows(shape, of, device, tiny, ("H0", "H1", "H2"))
        decode_row(shape, of, device, tiny)
    for shape, of in task.items():
        if not tiny:
            train_rows(shape, of, device, tiny, ("H3",))  # last: compiling takes minutes


if __name__ == "__main__":
    main()

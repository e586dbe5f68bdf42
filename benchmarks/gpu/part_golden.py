"""Part golden: the same training on the CPU and on the device, step by step: losses, and the angle between the gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import emit, options, row_of

import lora_c
from lora_c.bench import StepBench
from lora_c.bench_shapes import synthetic_model
from lora_c.weights.quantization import NF4

STEPS, TINY_STEPS, RANK = 20, 3, 8
# Of the losses (relative) and the cosine of all gradients as one vector, in every step. Exact: sums in another order, through
# AdamW, which divides small gradients by their own size. Fast: products with operands of 8 bits against those of float32.
BOUNDS = {"exact": (1e-4, 0.9999), "fast": (2e-3, 0.999)}
CASES: tuple[dict[str, Any], ...] = (
    {"model": "tiny", "precision": "exact", "recompute": "none", "lora_dropout": 0.0},
    {"model": "tiny", "precision": "exact", "recompute": "layer", "lora_dropout": 0.1},
    {"model": "demo", "precision": "exact", "recompute": "none", "lora_dropout": 0.0},
    {"model": "tiny", "precision": "fast", "recompute": "layer", "lora_dropout": 0.0},
    {"model": "demo", "precision": "fast", "recompute": "none", "lora_dropout": 0.0},
)


def trained(case: dict[str, Any], device: str, precision: str, steps: int, length: int) -> tuple[list[float], list[Any]]:
    """Return the losses and the gradients of all steps."""
    if case["model"] == "demo":
        model = lora_c.load_model("demo", quantize="nf4", progress=False, device=device)
    else:
        model = synthetic_model(case["model"], NF4, device, share_layers=True)
    config = lora_c.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=case["lora_dropout"], target_modules="all-linear")
    model.add_adapter(config)
    model.decoder.precision, model.decoder.recompute = precision, case["recompute"]
    bench = StepBench(model, 2, length)
    losses, gradients = [], []
    for _ in range(steps):
        losses.append(bench.step())
        found = [parameter.read_grad() for parameter in model.trainable_parameters()]
        gradients.append(np.concatenate([np.ravel(gradient) for gradient in found if gradient is not None]).astype(np.float64))
    return losses, gradients


def cosine(a: Any, b: Any) -> float:
    """Of the angle between two vectors, neither of which is zero."""
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def main() -> None:
    """One row a case."""
    args = options(__doc__)
    steps, length = (TINY_STEPS, 8) if args.tiny else (STEPS, 128)
    for case in CASES[:1] + CASES[3:4] if args.tiny else CASES:
        with row_of(**case) as row:
            # The CPU is the yardstick of both precisions in float32.
            expected, expected_gradients = trained(case, "cpu", "exact", steps, length)
            losses, gradients = trained(case, args.device, case["precision"], steps, length)
            off = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)]
            angles = [cosine(a, b) for a, b in zip(gradients, expected_gradients, strict=True)]
            most, least = BOUNDS[case["precision"]]
            row |= {"losses": losses, "cpu_losses": expected, "largest_loss_error": max(off), "cosines": angles}
            row["ok"] = bool(max(off) <= most and min(angles) >= least)
        if "ok" not in row:
            emit(what="failed", ok=False, **case)


if __name__ == "__main__":
    main()

"""Steps of the peers' optimizers, for tests/python/test_optimizers_peers.py.

    .venv-peers/bin/python tests/golden/make_optimizer_golden.py

SGD and Muon are torch's, Adafactor transformers', Lion bitsandbytes' (all on the CPU). bitsandbytes has no 8-bit step on the
CPU: AdamW8bit is composed of its quantize_blockwise and dequantize_blockwise, the exact ones (its table of 65,536 bins, used
for float32, is coarser than the map), around its own 32-bit formula. Muon's products are made in float32: torch would round
the matrix to bfloat16 first.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes import functional
from bitsandbytes.optim import Lion
from safetensors.numpy import save_file
from transformers.optimization import Adafactor

STEPS = 12
SHAPES = {"wide": (6, 40), "tall": (50, 4), "vector": (33,)}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd_plain": (torch.optim.SGD, {"lr": 0.1}),
    "sgd_nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    "sgd_dampening": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    "lion": (Lion, {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    "adafactor": (Adafactor, {}),
    "adafactor_trainer": (Adafactor, {"lr": 0.01, "scale_parameter": False, "relative_step": False}),
    "adafactor_all": (Adafactor, {"beta1": 0.9, "weight_decay": 0.1, "warmup_init": True, "clip_threshold": 0.5}),
    "muon": (torch.optim.Muon, {"lr": 0.02}),
    "muon_matched": (torch.optim.Muon, {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw", "nesterov": False, "momentum": 0.9}),
}


def dynamic_map(signed: bool) -> np.ndarray:
    """As create_dynamic_map makes it where nothing is fused: bitsandbytes' own differs in the last bits elsewhere."""
    one, tenth, values = np.float32(1), np.float32(0.1), []
    for i in range(7):
        n = 2**i if signed else 2 ** (i + 1)
        step = (one - tenth) / np.float32(n)
        edges = [tenth + np.float32(j) * step if j < (n + 1) // 2 else one - np.float32(n - j) * step for j in range(n + 1)]
        values += [(a + b) / np.float32(2) * np.float32(10.0 ** (i - 6)) for a, b in zip(edges, edges[1:], strict=False)]
    return np.sort(np.array([*([-v for v in values] if signed else []), 0, *values, 1], np.float32))


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def run_case(make: Any, options: dict[str, Any]) -> dict[str, np.ndarray]:
    start = {name: torch.nn.Parameter(torch.from_numpy(a.copy())) for name, a in arrays(0).items()}
    if make is torch.optim.Muon:
        del start["vector"]
    optimizer = make(list(start.values()), **options)
    for step in range(1, STEPS + 1):
        gradients = arrays(step)
        for name, parameter in start.items():
            parameter.grad = torch.from_numpy(gradients[name].copy())
        optimizer.step()
    return {name: p.detach().numpy() for name, p in start.items()}


def quantize(x: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact search, which bitsandbytes has for types without a table."""
    return torch.ops.bitsandbytes.quantize_blockwise(x.double(), code, 256)


def run_8bit(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    p = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    maps = [torch.from_numpy(dynamic_map(signed)) for signed in (True, False)]
    codes = [torch.zeros(n, dtype=torch.uint8) for _ in maps]
    absmax = [torch.zeros(-(-n // 256)) for _ in maps]
    b1, b2, eps, lr, decay = 0.9, 0.999, 1e-8, 1e-3, 0.01
    for step in range(1, STEPS + 1):
        g = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
        m, v = (
            functional.dequantize_blockwise(c, absmax=a, code=t, blocksize=256)
            for c, a, t in zip(codes, absmax, maps, strict=True)
        )
        m, v = m * b1 + (1 - b1) * g, v * b2 + (1 - b2) * g * g
        root = math.sqrt(1 - b2**step)
        p = p * (1 - lr * decay) - lr * root / (1 - b1**step) * (m / (v.sqrt() + eps * root))
        (codes[0], absmax[0]), (codes[1], absmax[1]) = quantize(m, maps[0]), quantize(v, maps[1])
    return {"p": p.numpy(), "m_codes": codes[0].numpy(), "v_codes": codes[1].numpy(),
            "m_absmax": absmax[0].numpy(), "v_absmax": absmax[1].numpy()}  # fmt: skip


def main() -> None:
    torch.Tensor.bfloat16 = lambda x: x.float().clone()  # see above; a copy, as that is: what follows changes it in place
    out = {f"{case}.{name}": a for case, (make, options) in CASES.items() for name, a in run_case(make, options).items()}
    out |= {f"adamw8bit.{name}": a for name, a in run_8bit(5000).items()}
    rng = np.random.default_rng(3)
    values = rng.standard_normal(2000).astype(np.float32)
    for name, signed, x in (("signed", True, values), ("unsigned", False, values**2)):
        codes, absmax = quantize(torch.from_numpy(x), torch.from_numpy(dynamic_map(signed)))
        out |= {f"encode.{name}.codes": codes.numpy(), f"encode.{name}.absmax": absmax.numpy()}
        out[f"map.{name}"] = functional.create_dynamic_map(signed=signed).numpy()
    save_file(out, Path(__file__).parent / "optimizers.safetensors")


if __name__ == "__main__":
    main()

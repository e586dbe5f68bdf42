"""A process of its own that trains two passes on a device and prints what it took beside the forecast, as JSON.

Buffers of a device stay as large as they once were, so what one pass takes shows in a process that ran no other.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

import lora_c as lc
from lora_c import _core
from lora_c.configs import TrainConfig
from lora_c.model.meta_model import open_meta
from lora_c.training.memory import forecast_model

KINDS: dict[str, Any] = {
    "lora": lc.LoraConfig,
    "ia3": lc.IA3Config,
    "bottleneck": lc.BottleneckConfig,
    "prefix": lc.PrefixTuningConfig,
}


def measured(case: dict[str, Any]) -> dict[str, Any]:
    device, lengths = case["device"], case["lengths"]
    model = lc.load_model(case["folder"], progress=False, device=device, **case.get("load", {}))
    if "adapter" in case:
        model.add_adapter(KINDS[case.get("kind", "lora")](**case["adapter"]))
    for name, value in case.get("decoder", {}).items():
        setattr(model.decoder, name, value)
    parameters = model.trainable_parameters()
    config = TrainConfig(optim=case.get("optim", "adamw_torch"))
    optimizer = (_core.SGD if config.optim == "sgd" else _core.AdamW)(parameters, lr=1e-3)
    n_tokens = sum(lengths) + len(lengths) * model.decoder.virtual_tokens
    plan = forecast_model(model, n_tokens, config, len(lengths))
    scratch_before = _core.memory_report(device)["scratch"]["live"]
    _core.reset_peak_memory(device)
    ids = (np.arange(sum(lengths)) % 60 + 3).astype(np.int32)
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    for step in range(2):
        loss = model.decoder.forward_backward(ids, cu, ids, np.ones(len(ids), np.float32), dropout_step=step)
    assert np.isfinite(loss)
    report = _core.memory_report(device)
    optimizer.step()
    after = _core.memory_report(device)
    return {
        "without_values": without_values(case, config, n_tokens, model.device),
        "plan": {name: getattr(plan, name) for name in MEASURED},
        "took": {name: report[tag]["peak"] for name, tag in MEASURED.items()},
        "live": {name: report[tag]["live"] for name, tag in MEASURED.items()},
        "optimizer": after["optimizer"]["live"], "scratch_before": scratch_before,
        "scratch_after": after["scratch"]["peak"],
    }  # fmt: skip


def without_values(case: dict[str, Any], config: TrainConfig, n_tokens: int, device: str) -> dict[str, int]:
    """The same of a model without values, on the device that stands for this one."""
    stands = f"meta:{os.environ.get('SHIM_COMPUTE', '9.0')}" if device == "shim" else "meta"
    model = open_meta(case["folder"], device=stands, **case.get("load", {}))
    if "adapter" in case:
        model.add_adapter(KINDS[case.get("kind", "lora")](**case["adapter"]))
    for name, value in case.get("decoder", {}).items():
        setattr(model.decoder, name, value)
    plan = forecast_model(model, n_tokens, config, len(case["lengths"]))
    return {name: getattr(plan, name) for name in MEASURED}


MEASURED = {
    "base": "base weights", "parameters": "parameters", "gradients": "gradients", "optimizer": "optimizer",
    "activations": "activations", "scratch": "scratch",
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))

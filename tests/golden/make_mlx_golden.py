"""Adapters written by mlx-lm on the base models of make_adapter_golden.py, with the logits that MLX computes on the CPU.

Usage: PYTHON_WITH_MLX_LM tests/golden/make_mlx_golden.py       (mlx, mlx-lm)
Writes tests/golden/adapters/mlx_<name>/ and tests/golden/adapters/mlx.npz with `<name>.logits`.
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

OUT = Path(__file__).parent / "adapters"
IDS = [(7 * i + 3) % 48 for i in range(18)]  # as in make_adapter_golden.py
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
# name: (base, kind, num_layers, lora_parameters)
ADAPTERS = {
    "mlx_lora": ("biased", "lora", 2, {"rank": 3, "scale": 4.5, "dropout": 0.0, "keys": [*ATTENTION, "mlp.down_proj"]}),
    "mlx_dora": ("tied", "dora", -1, {"rank": 2, "scale": 2.0, "dropout": 0.05, "keys": ["self_attn.o_proj", "mlp.up_proj"]}),
}


def main() -> None:
    mx.set_default_device(mx.cpu)
    mx.random.seed(3)
    record = {}
    for name, (base, kind, layers, parameters) in ADAPTERS.items():
        model, _ = load_model(OUT / base)
        model.freeze()
        linear_to_lora_layers(model, layers, parameters, use_dora=kind == "dora")
        trained = [(k, v + 0.1 * mx.random.normal(v.shape)) for k, v in tree_flatten(model.trainable_parameters())]
        model.load_weights(trained, strict=False)
        model.eval()
        record[f"{name}.logits"] = np.array(model(mx.array(IDS)[None])[0].astype(mx.float32))
        (OUT / name).mkdir(exist_ok=True)
        mx.save_safetensors(str(OUT / name / "adapters.safetensors"), dict(trained))
        config = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters, "model": base, "iters": 1}
        (OUT / name / "adapter_config.json").write_text(json.dumps(config, indent=4))
    np.savez_compressed(OUT / "mlx.npz", **record)


if __name__ == "__main__":
    main()

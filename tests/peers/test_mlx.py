"""Adapters in the format of mlx-lm: ours in MLX on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lora_c as lc

mx = pytest.importorskip("mlx.core", reason="needs mlx, which this platform does not have")
GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
IDS = np.load(GOLDEN / "golden.npz")["ids"].astype(np.int32)


@pytest.mark.parametrize("name", ["patterns", "rslora", "layers", "dora", "dora_rslora", "exclude", "mlx_lora", "mlx_dora"])
def test_our_adapter_there(name: str, tmp_path: Path) -> None:
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    config = json.loads((GOLDEN / name / "adapter_config.json").read_text())
    base = GOLDEN / config.get("base_model_name_or_path", config.get("model"))
    model = lc.load_model(base)
    model.load_adapter(GOLDEN / name)
    model.save_adapter(tmp_path / "ours", format="mlx")
    mx.set_default_device(mx.cpu)
    theirs, _ = load_model(base)
    load_adapters(theirs, str(tmp_path / "ours"))
    theirs.eval()
    got = np.array(theirs(mx.array(IDS.tolist())[None])[0].astype(mx.float32))
    assert np.abs(got - model.decoder.logits(IDS)).max() < 1e-5

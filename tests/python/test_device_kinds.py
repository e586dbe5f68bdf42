"""IA3, bottlenecks, prompts and prefixes on a device that is not the CPU: the CPU's bits, alone and beside LoRA."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from bits.cases import decoding, gradients, training, uniform

import lora_c as lc
from lora_c.errors import LoraCError

KINDS: dict[str, Any] = {
    "ia3": lc.IA3Config(init_ia3_weights=False, target_modules="all-linear", feedforward_modules=["q_proj", "down_proj"]),
    "houlsby": lc.BottleneckConfig.houlsby(reduction_factor=8, scaling=0.7),
    "pfeiffer": lc.BottleneckConfig.pfeiffer(bottleneck_size=5, non_linearity="gelu_new"),
    "prompt": lc.PromptTuningConfig(num_virtual_tokens=4),
    "prefix": lc.PrefixTuningConfig(num_virtual_tokens=3),
    "projection": lc.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7),
}
MERGED = {"ia3"}
IDS = [3, 7, 2, 40, 9]


@pytest.fixture
def pair(make_model: Callable[..., Path], fake: str) -> Callable[[], list[lc.Model]]:
    """Load the tiny model on the CPU and on the device."""
    folder = make_model()
    return lambda: [lc.load_model(folder, progress=False, device=device) for device in ("cpu", fake)]


def move(model: lc.Model) -> None:
    """Give every trained value one of its own, so that no gradient is zero."""
    for i, parameter in enumerate(model.trainable_parameters()):
        parameter.write(parameter.read() + uniform(2000 + i, *parameter.shape, scale=0.3))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", KINDS)
def test_training_decoding_and_files(pair: Callable[[], list[lc.Model]], tmp_path: Path, kind: str) -> None:
    found = []
    for model in pair():
        base = model.logits(IDS)
        model.add_adapter(KINDS[kind])
        move(model)
        assert {p.device for p in model.trainable_parameters()} == {model.device}
        assert not np.array_equal(model.logits(IDS), base)
        parts = [gradients(model, 40), decoding(model, 30)]
        model.decoder.recompute = "layer"
        parts += [gradients(model, 40), training(model, 40, 5), decoding(model, 30), model.logits(IDS).tobytes()]
        model.save_adapter(tmp_path / model.device)
        found.append(parts)
        model.set_adapter(None)
        assert np.array_equal(model.logits(IDS), base)
    assert found[0] == found[1] and found[0][0] == found[0][2]
    assert files(tmp_path / "cpu") == files(tmp_path / "fake")
    for trainable in (True, False):
        loaded = pair()
        for model in loaded:
            model.load_adapter(tmp_path / "fake", is_trainable=trainable)
        assert loaded[0].logits(IDS).tobytes() == loaded[1].logits(IDS).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_beside_lora(pair: Callable[[], list[lc.Model]], kind: str) -> None:
    found = []
    for model in pair():
        model.add_adapter(r=4, lora_dropout=0.1, use_dora=True)
        move(model)
        model.add_adapter(KINDS[kind], "other")
        move(model)
        model.set_adapter(["default", "other"])
        answer = model.generate(IDS, max_new_tokens=8, ignore_eos=True)
        found.append([gradients(model, 40), decoding(model, 30), training(model, 40, 5), decoding(model, 30), answer])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_merging(pair: Callable[[], list[lc.Model]], kind: str) -> None:
    found = []
    for model in pair():
        model.add_adapter(KINDS[kind])
        move(model)
        if kind not in MERGED:
            with pytest.raises(LoraCError):
                model.merge()
            continue
        merged = [model.merge(dtype=dtype) for dtype in ("float32", "bfloat16", "nf4")]
        assert {m.device for m in merged} == {model.device}
        parts = [m.dense_weight(name).tobytes() for m in merged for name in sorted(m.weights)]
        model.merge_adapter()
        parts.append(model.logits(IDS).tobytes())
        model.unmerge_adapter()
        found.append([*parts, model.logits(IDS).tobytes(), *(m.logits(IDS).tobytes() for m in merged)])
    assert len({json.dumps([part.hex() for part in parts]) for parts in found}) == (kind in MERGED)

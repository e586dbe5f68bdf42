"""Blocks of GGUF files as the frozen base: training, decoding, quantizing again, merging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import BLOCKS, IDS, train

import lora_c as lc
from lora_c.errors import AdapterError
from lora_c.gguf import write_model


@pytest.mark.parametrize("kind", list(BLOCKS))
def test_training_on_blocks_equals_training_on_their_values(llama_file: Callable[..., Path], kind: str) -> None:
    path = llama_file(kind)
    blocks, dense = lc.load_model(path), lc.load_model(path, dtype="float32")
    assert blocks.weights["layers.0.gate_proj"].type == kind and kind in repr(blocks)
    assert isinstance(dense.weights["layers.0.gate_proj"], np.ndarray)
    (losses, gradients), (want_losses, want) = train(blocks, 6), train(dense, 6)
    assert losses == want_losses and losses[-1] < losses[0] - 0.1
    for got, expected in zip(gradients, want, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert np.abs(got).max() > 0
    np.testing.assert_array_equal(blocks.decoder.logits(IDS), dense.decoder.logits(IDS))


def test_decoding_on_blocks_equals_whole_texts(llama_file: Callable[..., Path]) -> None:
    model = lc.load_model(llama_file("Q4_K"))
    cache = model.decoder.new_cache(16)
    for i, token in enumerate(IDS):
        logits = model.decoder.decode(cache, [int(token)])
        np.testing.assert_allclose(logits[-1], model.decoder.logits(IDS[: i + 1])[-1], atol=2e-5)


def test_requantizing_reports_its_loss(llama_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = llama_file("Q8_0")
    model = lc.load_model(path, quantize="nf4")
    blocks = lc.load_model(path)
    assert blocks.requantization_error is None
    error = norm = 0.0
    for name, weight in model.weights.items():
        if isinstance(weight, lc.NF4Tensor):
            before = blocks.weights[name].dequantize()
            error += float(((weight.dequantize() - before) ** 2).sum())
            norm += float((before**2).sum())
    assert model.requantization_error == pytest.approx((error / norm) ** 0.5, rel=1e-5)
    assert 0.05 < model.requantization_error < 0.15
    assert f"{100 * model.requantization_error:.2f} %" in capsys.readouterr().err
    assert lc.load_model(llama_file(None, "dense.gguf"), quantize="nf4").requantization_error is None


def test_merging_into_blocks(llama_file: Callable[..., Path], tmp_path: Path) -> None:
    model = lc.load_model(llama_file("Q8_0"))
    train(model, 2)
    want = model.decoder.logits(IDS)
    with pytest.raises(AdapterError, match="merge"):
        write_model(tmp_path / "merged.gguf", model)
    with pytest.raises(AdapterError, match="got Q8_0, which cannot be restored"):
        model.merge_adapter()
    merged = model.merge()
    np.testing.assert_allclose(merged.decoder.logits(IDS), want, atol=1e-4)
    write_model(tmp_path / "merged.gguf", merged, "F32")
    np.testing.assert_allclose(lc.load_model(tmp_path / "merged.gguf").decoder.logits(IDS), want, atol=1e-4)

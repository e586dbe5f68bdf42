"""GGMLTensor: decoding and quantizing against the gguf package's classes, memory, and every refusal."""

from __future__ import annotations

import gc
import mmap
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lora_c as lc
from lora_c import ops

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "ggml_golden.npz"
TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
WIDTHS = {"F16": 1, "BF16": 1, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def tensor_of(golden: dict[str, np.ndarray], name: str, cols: int | None = None) -> lc.GGMLTensor:
    """The golden blocks as a matrix."""
    blocks = golden[f"{name}.blocks"]
    count = golden[f"{name}.values"].size
    cols = cols or WIDTHS.get(name, 32)
    return lc.GGMLTensor.from_blocks(np.ascontiguousarray(blocks).reshape(-1), (count // cols, cols), name)


@pytest.mark.parametrize("isa", lc.supported_isas())
@pytest.mark.parametrize("name", TYPES)
def test_decodes_as_the_gguf_package(golden: dict[str, np.ndarray], name: str, isa: str) -> None:
    before = lc.get_isa()
    lc.set_isa(isa)
    try:
        tensor = tensor_of(golden, name)
        assert tensor.type == name and tensor.block_size == WIDTHS.get(name, 32)
        want = golden[f"{name}.values"].reshape(tensor.shape)
        np.testing.assert_array_equal(tensor.dequantize().view(np.uint32), want.view(np.uint32))
        for dtype in (np.float16, ml_dtypes.bfloat16):
            with np.errstate(over="ignore"):
                rounded = want.astype(dtype)
            np.testing.assert_array_equal(tensor.dequantize(dtype=dtype).view(np.uint16), rounded.view(np.uint16))
    finally:
        lc.set_isa(before)


@pytest.mark.parametrize("isa", lc.supported_isas())
def test_quantizes_to_the_bytes_of_the_gguf_package(golden: dict[str, np.ndarray], isa: str) -> None:
    before = lc.get_isa()
    lc.set_isa(isa)
    try:
        tensor = lc.GGMLTensor.quantize(golden["Q8_0.src"])
        np.testing.assert_array_equal(tensor.blocks, golden["Q8_0.quantized"].reshape(-1))
        assert bytes(memoryview(tensor)) == golden["Q8_0.quantized"].tobytes()
    finally:
        lc.set_isa(before)


def test_quantizes_16_bit_sources_and_any_number_of_threads(rng: np.random.Generator) -> None:
    source = rng.standard_normal((70, 4128)).astype(np.float32)
    threads = lc.get_num_threads()
    try:
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            narrow = source.astype(dtype)
            lc.set_num_threads(1)
            want = lc.GGMLTensor.quantize(narrow.astype(np.float32))
            lc.set_num_threads(3)
            np.testing.assert_array_equal(lc.GGMLTensor.quantize(narrow).blocks, want.blocks)
            error = np.abs(want.dequantize() - narrow.astype(np.float32))
            assert error.max() <= np.abs(source).max() / 127 * 0.51
    finally:
        lc.set_num_threads(threads)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def random_blocks(name: str, rows: int, cols: int, rng: np.random.Generator) -> lc.GGMLTensor:
    """Random codes with scales around 1/64."""
    values = WIDTHS.get(name, 32)
    size = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}.get(name, 2)
    blocks = rng.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
    if values == 1:
        dtype = np.dtype(np.float16 if name == "F16" else ml_dtypes.bfloat16)
        blocks[:] = rng.standard_normal((len(blocks), 1)).astype(dtype).view(np.uint8)
    else:
        for offset in {"Q6_K": (208,)}.get(name, (0, 2) if name[-1] in "1K" else (0,)):
            scale = (rng.standard_normal(len(blocks)) / 64 / (32 if name.endswith("K") else 1)).astype(np.float16)
            blocks[:, offset : offset + 2] = scale[:, None].view(np.uint8)
    return lc.GGMLTensor.from_blocks(blocks.reshape(-1), (rows, cols), name)


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("name", TYPES)
def test_layers_on_blocks_equal_layers_on_their_values(name: str, tokens: int, rng: np.random.Generator) -> None:
    """The frozen base as blocks or as the float32 values that they stand for: the same bits, forward and backward."""
    rows, cols = 100, 512
    base = random_blocks(name, rows, cols, rng)
    dense = base.dequantize()
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    dy = rng.standard_normal((tokens, rows)).astype(np.float32)
    results: list[Any] = []
    for weight in (base, dense):
        layer = lc.LoRALinear(weight, 4, lora_alpha=8, seed=1)
        layer.B.data[:] = 0.01
        results.append((layer.forward(x), layer.backward(dy, x), layer.A.grad, layer.B.grad, layer.merge()))
    for got, want in zip(*results, strict=True):
        np.testing.assert_array_equal(got, want)
    ids = rng.integers(0, rows, tokens).astype(np.int32)
    np.testing.assert_array_equal(ops.embedding(ids, base), dense[ids])


def test_borrows_mapped_memory_and_keeps_it_alive(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    path = tmp_path / "blocks"
    path.write_bytes(golden["Q4_0.blocks"].tobytes())
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    count = golden["Q4_0.values"].size
    live = lc.memory_report()["base"]["live"] if "base" in lc.memory_report() else None
    tensor = lc.GGMLTensor.from_blocks(memoryview(mapped), (count // 32, 32), "Q4_0")
    if live is not None:
        assert lc.memory_report()["base"]["live"] == live
    with pytest.raises(BufferError):
        mapped.close()
    view = tensor.blocks
    del tensor, mapped
    gc.collect()
    np.testing.assert_array_equal(view, golden["Q4_0.blocks"].reshape(-1))
    assert not view.flags.writeable


def test_refusals(golden: dict[str, np.ndarray]) -> None:
    blocks = np.zeros(34 * 4, np.uint8)
    good: dict[str, Any] = {"blocks": blocks, "shape": (4, 32), "type": "Q8_0"}
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"type": "Q2_K"}, ValueError, "type: expected one of F16"),
        ({"shape": (4, 48)}, ValueError, "multiple of 32 columns for Q8_0, got 48"),
        ({"shape": (0, 32)}, ValueError, "two sizes >= 1"),
        ({"shape": (2**40, 2**40)}, ValueError, "two sizes >= 1"),
        ({"shape": (5, 32)}, ValueError, r"expected 170 bytes for Q8_0 \(5, 32\), got 136"),
        ({"blocks": blocks.astype(np.float32)}, TypeError, "blocks: expected uint8"),
        ({"blocks": np.full(34 * 4, 255, np.uint8)}, ValueError, "finite block scales, got a NaN or an infinity in row 0"),
        ({"blocks": np.full(256, 255, np.uint8), "type": "F16"}, ValueError, "expected finite values"),
    ]
    assert lc.GGMLTensor.from_blocks(**good).dequantize().sum() == 0
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            lc.GGMLTensor.from_blocks(**(good | change))
    with pytest.raises(TypeError, match="plain call"):
        lc.GGMLTensor()
    with pytest.raises(ValueError, match="read only"):
        lc.GGMLTensor.quantize(np.zeros((1, 32), np.float32), type="Q4_0")
    with pytest.raises(ValueError, match="multiple of 32 columns for Q8_0, got 33"):
        lc.GGMLTensor.quantize(np.zeros((1, 33), np.float32))
    for bad in (np.nan, np.inf, -1e7):
        source = np.zeros((9, 64), np.float32)
        source[7, 40] = bad
        with pytest.raises(ValueError, match="got others in row 7"):
            lc.GGMLTensor.quantize(source)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(lc.GGMLTensor.from_blocks(**good))
    with pytest.raises(ValueError, match="out: expected shape"):
        tensor_of(golden, "Q8_0").dequantize(out=np.zeros((1, 32), np.float32))

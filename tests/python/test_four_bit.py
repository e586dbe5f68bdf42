"""The 4-bit types beside NF4: values by their definitions, the bytes of bitsandbytes' FP4, ties, errors of normal weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import lora_c as lc
from lora_c import _core, reference
from lora_c.configs import FOUR_BIT

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "fp4_golden.npz"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
UNUSED = {"nf4": (), "fp4": (), "fp4_e2m1": (8,), "int4": (15,)}
OTHERS = tuple(kind for kind in FOUR_BIT if kind != "nf4")


def load_golden() -> dict[str, dict[str, np.ndarray]]:
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN) as record:
        for key in record.files:
            case, _, part = key.rpartition(".")
            cases.setdefault(case or "tables", {})[part] = record[key]
    return cases


GOLDEN_CASES = load_golden()
CASE_NAMES = [name for name in GOLDEN_CASES if name != "tables"]


@pytest.fixture
def every_isa() -> Iterator[list[str]]:
    before = _core.get_isa()
    yield _core.supported_isas()
    _core.set_isa(before)


def nibbles(codes: np.ndarray, n: int) -> np.ndarray:
    return np.stack([codes >> 4, codes & 15], axis=1).ravel()[:n]


def source(case: dict[str, np.ndarray]) -> np.ndarray:
    return case["src"].view(BFLOAT16) if case["dtype"] == "bfloat16" else case["src"]


@pytest.mark.parametrize("name", CASE_NAMES)
def test_fp4_has_the_bytes_of_bitsandbytes(name: str, every_isa: list[str]) -> None:
    case = GOLDEN_CASES[name]
    for isa in every_isa:
        _core.set_isa(isa)
        w = lc.NF4Tensor.quantize(source(case), block_size=int(case["block_size"]), double_quant=False, quant_type="fp4")
        np.testing.assert_array_equal(w.codes, case["codes"])
        np.testing.assert_array_equal(w.absmax, case["absmax"])
        if not name.startswith("tiny"):  # the peer flushes what is below the normal numbers
            np.testing.assert_array_equal(w.dequantize(dtype="bfloat16").view(np.uint16), case["bf16"].reshape(w.shape))


@pytest.mark.parametrize("name", CASE_NAMES)
def test_double_quantization_of_fp4(name: str) -> None:
    """As that of NF4 (test_nf4.py): the nearest code, which the peer's CPU code misses by a step at times."""
    case = GOLDEN_CASES[name]
    w = lc.NF4Tensor.quantize(source(case), block_size=int(case["block_size"]), quant_type="fp4")
    np.testing.assert_array_equal(w.codes, case["codes"])
    nf4 = lc.NF4Tensor.quantize(source(case), block_size=int(case["block_size"]))
    for part in ("absmax_codes", "nested_absmax", "nested_map"):
        np.testing.assert_array_equal(getattr(w, part), getattr(nf4, part))
    np.testing.assert_allclose(w.nested_offset, case["nested_offset"], rtol=2.0**-21)


def test_the_values_are_those_of_the_definitions() -> None:
    np.testing.assert_array_equal(GOLDEN_CASES["tables"]["lut"], reference.four_bit_values("fp4"))
    for kind in OTHERS:
        w = lc.NF4Tensor.quantize(np.ones((1, 64), np.float32), quant_type=kind)
        np.testing.assert_array_equal(w.lut, reference.four_bit_values(kind))
        assert w.quant_type == kind and f"quant_type='{kind}'" in repr(w) and kind in w._repr_html_()
    assert "quant_type" not in repr(lc.NF4Tensor.quantize(np.ones((1, 64), np.float32), quant_type="nf4"))


@pytest.mark.parametrize("kind", FOUR_BIT)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_codes_are_those_of_the_reference(kind: str, dtype: str, every_isa: list[str]) -> None:
    rng = np.random.default_rng(7)
    x = (rng.standard_normal((37, 131)) * rng.gamma(2, 1, (37, 1))).astype(
        np.dtype(dtype) if dtype != "bfloat16" else BFLOAT16
    )
    x[3, 5:40] = 0
    for block_size in (32, 64, 4096):
        full = x.size - x.size % block_size  # the last, shorter block divides, and is compared with bitsandbytes above
        for isa in every_isa:
            _core.set_isa(isa)
            w = lc.NF4Tensor.quantize(x, block_size=block_size, double_quant=False, quant_type=kind)
            codes, absmax = reference.nf4_quantize(x, w.lut, block_size, UNUSED[kind])
            np.testing.assert_array_equal(nibbles(w.codes, x.size)[:full], codes[:full])
            np.testing.assert_array_equal(w.absmax, absmax)
            np.testing.assert_array_equal(
                w.dequantize().ravel()[:full], reference.nf4_dequantize(codes, absmax, w.lut, block_size)[:full]
            )
        assert set(UNUSED[kind]).isdisjoint(nibbles(w.codes, x.size))


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_nearest_value_with_ties_to_the_lower(kind: str, every_isa: list[str]) -> None:
    lut = np.array(lc.NF4Tensor.quantize(np.ones((1, 32), np.float32), quant_type=kind).lut)
    values = np.unique(lut)
    middle = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    x = np.concatenate([np.nextafter(middle, np.float32(-2)), middle, np.nextafter(middle, np.float32(2)), values])
    x = np.concatenate([np.ones(1), x, np.zeros(-(x.size + 1) % 32)]).astype(np.float32)[None]
    want = np.concatenate([[1], values[:-1], values[:-1], values[1:], values])
    for isa in every_isa:
        _core.set_isa(isa)
        w = lc.NF4Tensor.quantize(x, block_size=32, double_quant=False, quant_type=kind)
        decoded = w.dequantize().ravel()
        np.testing.assert_array_equal(decoded[: want.size][w.absmax[np.arange(want.size) // 32] == 1],
                                      want[w.absmax[np.arange(want.size) // 32] == 1])  # fmt: skip
        assert not decoded[want.size :].any()


# Mean |error| of N(0, 1) weights in blocks of 64: nearest values in float64 over 2^22 draws of another seed.
ERRORS = {"nf4": 0.0728, "fp4": 0.0965, "fp4_e2m1": 0.0803, "int4": 0.0913}


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_errors_of_normal_weights(kind: str) -> None:
    x = np.random.default_rng(3).standard_normal((1024, 1024)).astype(np.float32)
    error = np.abs(lc.NF4Tensor.quantize(x, double_quant=False, quant_type=kind).dequantize() - x)
    assert abs(error.mean() - ERRORS[kind]) < 5e-4


@pytest.mark.parametrize("kind", OTHERS)
def test_odd_counts_zeros_and_refusals(kind: str) -> None:
    zero = {"fp4": 0, "fp4_e2m1": 0, "int4": 7}[kind]
    w = lc.NF4Tensor.quantize(np.zeros((5, 63), np.float32), quant_type=kind)
    assert set(nibbles(w.codes, 316)) == {zero} and not w.dequantize().any()
    x = np.ones((3, 70), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        for where in ((0, 3), (2, 69)):
            x[where] = bad
            with pytest.raises(
                ValueError, match=rf"src: expected finite values, got .* \(row {where[0]}, column {where[1]}\)"
            ):
                lc.NF4Tensor.quantize(x, quant_type=kind)
            x[where] = 1
    with pytest.raises(ValueError, match="quant_type: expected 'nf4', 'fp4', 'fp4_e2m1' or 'int4', got 'af4'"):
        lc.NF4Tensor.quantize(x, quant_type="af4")


@pytest.mark.parametrize("kind", OTHERS)
def test_parts_make_the_same_tensor_and_products_use_its_values(kind: str, every_isa: list[str]) -> None:
    rng = np.random.default_rng(1)
    w = lc.NF4Tensor.quantize(rng.standard_normal((44, 96)).astype(np.float32), quant_type=kind)
    again = lc.NF4Tensor.from_parts(
        np.frombuffer(w, np.uint8), w.shape, absmax_codes=w.absmax_codes, nested_absmax=w.nested_absmax,
        nested_offset=w.nested_offset, quant_type=kind,
    )  # fmt: skip
    assert again.quant_type == kind
    np.testing.assert_array_equal(again.dequantize(), w.dequantize())
    x, dy = rng.standard_normal((9, 96)).astype(np.float32), rng.standard_normal((9, 44)).astype(np.float32)
    dense = w.dequantize().astype(np.float64)
    for isa in every_isa:
        _core.set_isa(isa)
        np.testing.assert_allclose(lc.ops.linear(x, w), x @ dense.T, atol=1e-4)
        np.testing.assert_allclose(lc.ops.linear_backward(dy, w), dy @ dense, atol=1e-4)


def test_q8_0_of_the_reference() -> None:
    with np.load(GOLDEN.with_name("ggml_golden.npz")) as golden:
        src, blocks = golden["Q8_0.src"], golden["Q8_0.quantized"].reshape(-1, 34)
    codes, scales = reference.q8_0_quantize(src)
    np.testing.assert_array_equal(blocks[:, :2].copy().view(np.float16).ravel(), scales)
    np.testing.assert_array_equal(blocks[:, 2:].copy().view(np.int8).ravel(), codes)
    tensor = lc.GGMLTensor.quantize(src)
    np.testing.assert_array_equal(tensor.dequantize().ravel(), reference.q8_0_dequantize(codes, scales))

"""NF4Tensor: byte equality with bitsandbytes (golden records and slices of real models), ranges of errors, views."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lora_c as lc
from lora_c import _core, reference

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "nf4_golden.npz"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EXACT_MEAN_BOUND = 2.0**-21  # the peer's float32 mean adds in an order of its own: a few units in the last place


def load_golden() -> dict[str, dict[str, np.ndarray]]:
    """Return case name -> its arrays; the tables are under the name `tables`."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN) as record:
        for key in record.files:
            case, _, part = key.rpartition(".")
            cases.setdefault(case or "tables", {})[part] = record[key]
    return cases


GOLDEN_CASES = load_golden()
CASE_NAMES = [name for name in GOLDEN_CASES if name != "tables"]
LUT = GOLDEN_CASES["tables"]["lut"]
MAP = GOLDEN_CASES["tables"]["map"]


def source(case: dict[str, np.ndarray]) -> np.ndarray:
    return case["src"].view(BFLOAT16) if case["dtype"] == "bfloat16" else case["src"]


def nibbles(codes: np.ndarray, n: int) -> np.ndarray:
    """Element order: high nibble first."""
    return np.stack([codes >> 4, codes & 15], axis=1).ravel()[:n]


def nearest_index(y: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Brute-force nearest entry in float64, a tie to the even index."""
    distance = np.abs(y.astype(np.float64)[:, None] - table.astype(np.float64))
    even = np.where(np.arange(table.size) % 2 == 0, 0.0, np.nextafter(0, 1))
    order = np.lexsort((np.broadcast_to(even, distance.shape), distance), axis=1)
    return order[:, 0]


def decode_scales(w: Any, block_size: int = 256) -> np.ndarray:
    """float32: product rounded before the sum."""
    nested = w.nested_absmax[np.arange(w.absmax_codes.size) // block_size]
    return w.nested_map[w.absmax_codes] * nested + np.float32(w.nested_offset)


@pytest.fixture
def every_isa() -> Iterator[list[str]]:
    """The rungs of this machine; the one in use comes back afterwards."""
    before = _core.get_isa()
    yield _core.supported_isas()
    _core.set_isa(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = _core.get_num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_golden_codes_and_scales(name: str, every_isa: list[str]) -> None:
    case = GOLDEN_CASES[name]
    for isa in every_isa:
        _core.set_isa(isa)
        w = lc.NF4Tensor.quantize(source(case), block_size=int(case["block_size"]), double_quant=False)
        np.testing.assert_array_equal(w.codes, case["codes"])
        np.testing.assert_array_equal(w.absmax, case["absmax"])
        np.testing.assert_array_equal(w.dequantize(dtype="bfloat16").view(np.uint16), case["bf16"].reshape(w.shape))


@pytest.mark.parametrize("name", CASE_NAMES)
def test_the_readable_reference_has_the_peers_codes(name: str) -> None:
    case = GOLDEN_CASES[name]
    block_size, w = int(case["block_size"]), source(case).astype(np.float32)
    codes, absmax = reference.nf4_quantize(w, LUT, block_size)
    np.testing.assert_array_equal(codes, nibbles(case["codes"], w.size))
    # a tail of zeros has the scale 1e-38 there, a whole block of zeros 0; the weights are zeros either way
    np.testing.assert_array_equal(np.where(absmax > 0, absmax, case["absmax"]), case["absmax"])
    assert case["absmax"][absmax == 0].max(initial=0) <= np.float32(1e-38)
    back = reference.nf4_dequantize(codes, absmax, LUT, block_size)
    np.testing.assert_array_equal(back.astype(BFLOAT16).view(np.uint16), case["bf16"].ravel())


@pytest.mark.parametrize("name", CASE_NAMES)
def test_golden_double_quantization(name: str) -> None:
    """Ours is the nearest code; the peer's CPU code snaps to 65,536 bins first and may be one step off."""
    case = GOLDEN_CASES[name]
    w = lc.NF4Tensor.quantize(source(case), block_size=int(case["block_size"]), double_quant=True)
    np.testing.assert_array_equal(w.codes, case["codes"])
    np.testing.assert_allclose(w.nested_offset, case["nested_offset"], rtol=EXACT_MEAN_BOUND)
    assert np.float32(w.nested_offset) == np.float32(case["absmax"].astype(np.float64).mean())

    centred = case["absmax"] - np.float32(w.nested_offset)
    nested = np.array([np.abs(centred[i : i + 256]).max() for i in range(0, centred.size, 256)], np.float32)
    np.testing.assert_array_equal(w.nested_absmax, nested)
    nested = nested[np.arange(centred.size) // 256]
    y = centred / np.where(nested > 0, nested, np.float32(1))
    np.testing.assert_array_equal(w.absmax_codes, nearest_index(y, w.nested_map))

    # Compared where the peer resolves: near zero its bins are wider than the map, and where nothing is left but the
    # rounding of the mean the two centre differently.
    noise = EXACT_MEAN_BOUND * abs(float(case["nested_offset"]))
    resolved = (np.abs(y) > 1e-3) & (nested > 1e3 * noise)
    step = np.abs(w.absmax_codes.astype(int) - case["nested_codes"].astype(int))
    assert step[resolved].max(initial=0) <= 1


def test_tables(shared_data: Callable[[str], Path]) -> None:
    w = lc.NF4Tensor.quantize(np.ones((4, 64), np.float32))
    maps = json.loads((shared_data("bnb_reference") / "bnb_dynamic_map_fp32.json").read_text())
    np.testing.assert_array_equal(w.nested_map, np.array(maps["signed"], np.float32))
    values = lc.NF4Tensor.quantize(LUT[None, :], block_size=32, double_quant=False).dequantize()
    np.testing.assert_array_equal(values[0], LUT)


def read_slice(path: Path) -> dict[str, Any]:
    """A slice of a quantized model.

    Little-endian, nothing but: nine uint32 (kind: 0 plain, 2 double-quantized; n elements; block size; then the bytes of
    the six sections), the float32 nested offset, and the sections: codes, absmax (float32, or uint8 codes), the 16-value
    table, nested absmax, nested map (both empty for kind 0), and the decoded values in bfloat16.
    """
    data = path.read_bytes()
    kind, n, block_size, *sizes, offset = struct.unpack_from("<9If", data)
    starts = 40 + np.concatenate([[0], np.cumsum(sizes)])
    assert starts[-1] == len(data)
    types = [np.uint8, np.uint8 if kind == 2 else np.float32, np.float32, np.float32, np.float32, np.uint16]
    names = ["codes", "absmax", "lut", "nested_absmax", "nested_map", "bf16"]
    parts = {k: np.frombuffer(data[a:b], t) for k, t, a, b in zip(names, types, starts, starts[1:], strict=False)}
    return parts | {"kind": kind, "n": n, "block_size": block_size, "nested_offset": offset}


def test_the_largest_number_of_float32_is_finite(every_isa: list[str]) -> None:
    largest = np.finfo(np.float32).max
    w = np.zeros((2, 64), np.float32)
    w[0, 5], w[1, 3] = largest, -largest
    for isa in every_isa:
        _core.set_isa(isa)
        assert np.array_equal(lc.NF4Tensor.quantize(w, double_quant=False).dequantize(), w), isa
        with pytest.raises(ValueError, match="finite"):
            lc.NF4Tensor.quantize(np.where(w == largest, np.float32(np.inf), w))


@pytest.mark.parametrize("file", ["llama_1b_nf4.bin", "llama_1b_nf4_double_quant.bin"])
def test_slices_of_real_models(file: str, shared_data: Callable[[str], Path], every_isa: list[str]) -> None:
    part = read_slice(shared_data("bnb_reference") / file)
    shape = (2, part["n"] // 2)
    scales: dict[str, Any] = {"absmax": part["absmax"]}
    if part["kind"] == 2:
        scales = {"absmax_codes": part["absmax"], "nested_absmax": part["nested_absmax"],
                  "nested_map": part["nested_map"], "nested_offset": part["nested_offset"]}  # fmt: skip
    w = lc.NF4Tensor.from_parts(part["codes"], shape, block_size=part["block_size"], lut=part["lut"], **scales)
    for isa in every_isa:
        _core.set_isa(isa)
        np.testing.assert_array_equal(w.dequantize(dtype="bfloat16").view(np.uint16).ravel(), part["bf16"])
    if part["kind"] == 0:  # decoded values are fixed points: quantizing them gives the same codes and scales
        again = lc.NF4Tensor.quantize(w.dequantize(), block_size=part["block_size"], double_quant=False)
        full = np.array([{0, 15} & set(block) != set() for block in nibbles(w.codes, part["n"]).reshape(-1, 64)])
        assert full.all()
        np.testing.assert_array_equal(again.codes, part["codes"])
        np.testing.assert_array_equal(again.absmax, part["absmax"])


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("double_quant", [False, True])
def test_error_of_normal_weights(block_size: int, double_quant: bool) -> None:
    """Mean errors of N(0, 1) weights as bitsandbytes' own tests list them (7 standard deviations of slack)."""
    expected = {32: 0.067746, 64: 0.072798, 128: 0.076831, 256: 0.080337, 512: 0.083547, 1024: 0.086610, 2048: 0.089592,
                4096: 0.092547}[block_size]  # fmt: skip
    x = np.random.default_rng(3).standard_normal((1024, 1024)).astype(np.float32)
    w = lc.NF4Tensor.quantize(x, block_size=block_size, double_quant=double_quant)
    assert abs(np.abs(w.dequantize() - x).mean() - expected) < 3e-3 if double_quant else 7 * 4.6e-4


def test_decoding_follows_the_definition() -> None:
    x = np.random.default_rng(5).standard_normal((37, 172)).astype(np.float32)
    w = lc.NF4Tensor.quantize(x)
    values = LUT[nibbles(w.codes, x.size)] * decode_scales(w)[np.arange(x.size) // 64]
    np.testing.assert_array_equal(w.dequantize().ravel(), values)
    np.testing.assert_array_equal(w.dequantize(dtype="float16").ravel(), values.astype(np.float16))
    np.testing.assert_array_equal(
        w.dequantize(dtype="bfloat16").view(np.uint16).ravel(), values.astype(BFLOAT16).view(np.uint16)
    )
    out = np.empty(x.shape, np.float32)
    assert w.dequantize(out=out) is out
    np.testing.assert_array_equal(out.ravel(), values)


def test_rows_that_are_no_multiple_of_the_block() -> None:
    """Blocks ignore row ends (the case that other decoders get wrong)."""
    for shape, block_size in [((2, 96), 64), ((4, 32), 64), ((2, 4304), 64), ((4, 576), 128)]:
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        rows = lc.NF4Tensor.quantize(x, block_size=block_size, double_quant=False)
        flat = lc.NF4Tensor.quantize(x.reshape(1, -1), block_size=block_size, double_quant=False)
        np.testing.assert_array_equal(rows.codes, flat.codes)
        np.testing.assert_array_equal(rows.dequantize().ravel(), flat.dequantize().ravel())


def test_same_bytes_for_any_thread_count(threads: Callable[[int], None]) -> None:
    x = np.random.default_rng(2).standard_normal((511, 1031)).astype(np.float32)
    results = []
    for n in (1, 2, 5):
        threads(n)
        w = lc.NF4Tensor.quantize(x)
        results.append((w.codes.tobytes(), w.absmax_codes.tobytes(), w.nested_absmax.tobytes(), w.nested_offset,
                        w.dequantize().tobytes()))  # fmt: skip
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_named_by_the_first_index(dtype: Any, value: float, threads: Callable[[int], None]) -> None:
    x = np.zeros((401, 513), dtype)
    for n in (1, 3):
        threads(n)
        for first in (0, 77, 70_000, 131_072, x.size - 1):
            bad = x.copy()
            bad.flat[[first, x.size - 1]] = value
            with pytest.raises(ValueError, match=rf"finite.*index {first}\b"):
                lc.NF4Tensor.quantize(bad)


@pytest.mark.parametrize("block_size", [0, -64, 16, 48, 63, 8192])
def test_wrong_block_size(block_size: int) -> None:
    with pytest.raises(ValueError, match="block_size: expected 32"):
        lc.NF4Tensor.quantize(np.ones((4, 64), np.float32), block_size=block_size)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, np.complex64, ">f4"])
def test_wrong_dtype(dtype: Any) -> None:
    with pytest.raises(TypeError, match="float32|byte order"):
        lc.NF4Tensor.quantize(np.ones((4, 64), dtype))


@pytest.mark.parametrize(
    "w",
    [np.ones(64, np.float32), np.ones((2, 2, 16), np.float32), np.ones((0, 64), np.float32), np.ones((4, 0), np.float32)],
    ids=["vector", "cube", "no rows", "no columns"],
)
def test_wrong_shape(w: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        lc.NF4Tensor.quantize(w)


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[:, ::2], lambda a: a[::-1]], ids=["T", "step", "reversed"])
def test_non_contiguous(view: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        lc.NF4Tensor.quantize(view(np.ones((64, 32), np.float32)))


def test_not_an_array() -> None:
    with pytest.raises(TypeError):
        lc.NF4Tensor.quantize([[1.0, 2.0]])
    with pytest.raises(TypeError, match="quantize"):
        lc.NF4Tensor()


@pytest.fixture
def parts() -> dict[str, Any]:
    w = lc.NF4Tensor.quantize(np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32))
    return {"codes": w.codes, "shape": w.shape, "absmax_codes": w.absmax_codes, "nested_absmax": w.nested_absmax,
            "nested_map": w.nested_map, "nested_offset": w.nested_offset}  # fmt: skip


def from_parts(parts: dict[str, Any], **changes: Any) -> Any:
    merged = {k: v for k, v in (parts | changes).items() if v is not None}
    return lc.NF4Tensor.from_parts(merged.pop("codes"), merged.pop("shape"), **merged)


def test_from_parts_round_trip(parts: dict[str, Any]) -> None:
    w = from_parts(parts)
    x = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    np.testing.assert_array_equal(w.dequantize(), lc.NF4Tensor.quantize(x).dequantize())
    assert w.double_quant and w.absmax is None
    zero_byte = from_parts(parts, codes=np.zeros_like(parts["codes"]))  # a zero block as the CUDA coder writes it
    assert np.isfinite(zero_byte.dequantize()).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"codes": np.zeros(149, np.uint8)}, ValueError, "codes: expected"),
        ({"codes": np.zeros(151, np.uint8)}, ValueError, "codes: expected"),
        ({"codes": np.zeros(150, np.int8)}, TypeError, "codes"),
        ({"shape": (6, 0)}, ValueError, "shape"),
        ({"shape": (-6, -50)}, ValueError, "shape"),
        ({"shape": (2**40, 2**40)}, ValueError, "shape"),
        ({"absmax_codes": np.zeros(4, np.uint8)}, ValueError, "absmax_codes: expected 5"),
        ({"absmax_codes": np.zeros(5, np.float32)}, TypeError, "absmax_codes"),
        ({"nested_absmax": np.zeros(2, np.float32)}, ValueError, "nested_absmax: expected 1"),
        ({"nested_absmax": None}, ValueError, "nested_absmax"),
        ({"nested_map": np.zeros(255, np.float32)}, ValueError, "nested_map"),
        ({"absmax": np.zeros(5, np.float32)}, ValueError, "absmax"),
        ({"absmax_codes": None}, ValueError, "absmax"),
        ({"lut": np.zeros(15, np.float32)}, ValueError, "lut"),
        ({"block_size": 96}, ValueError, "block_size"),
        ({"nested_offset": np.nan}, ValueError, "nested_offset"),
    ],
)
def test_from_parts_refuses(parts: dict[str, Any], change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        from_parts(parts, **change)


def test_attributes_and_size() -> None:
    w = lc.NF4Tensor.quantize(np.random.default_rng(0).standard_normal((300, 257)).astype(np.float32))
    blocks = -(-300 * 257 // 64)
    assert w.shape == (300, 257) and w.block_size == 64 and w.double_quant
    assert w.nbytes == 300 * 257 // 2 + blocks + 4 * -(-blocks // 256)
    assert w.absmax_codes.shape == (blocks,) and w.nested_map.shape == (256,)
    with pytest.raises(AttributeError):
        w.block_size = 32
    with pytest.raises(ValueError, match="read-only"):
        w.codes[0] = 1


def test_memoryview_is_the_codes_read_only_and_without_a_copy() -> None:
    x = np.random.default_rng(0).standard_normal((9, 31)).astype(np.float32)
    w = lc.NF4Tensor.quantize(x)
    view = memoryview(w)
    assert view.readonly and view.format == "B" and view.nbytes == (9 * 31 + 1) // 2 and view.contiguous
    array = np.frombuffer(view, np.uint8)
    assert np.shares_memory(array, w.codes)
    with pytest.raises(TypeError):
        view[0] = 1
    kept = w.codes.copy()
    del w
    np.testing.assert_array_equal(array, kept)  # the view keeps the memory alive


def test_dequantize_refuses() -> None:
    w = lc.NF4Tensor.quantize(np.ones((4, 64), np.float32))
    frozen = np.ones((4, 64), np.float32)
    frozen.flags.writeable = False
    for out, error in [(np.ones((4, 63), np.float32), ValueError), (np.ones((4, 64)), TypeError),
                       (np.ones((64, 4), np.float32).T, ValueError), (frozen, ValueError)]:  # fmt: skip
        with pytest.raises(error, match="out"):
            w.dequantize(out=out)
    with pytest.raises((TypeError, ValueError), match="dtype"):
        w.dequantize(dtype="float64")


def test_pickling_is_refused_with_a_message() -> None:
    with pytest.raises(TypeError, match="NF4Tensor"):
        pickle.dumps(lc.NF4Tensor.quantize(np.ones((4, 64), np.float32)))


def test_codes_that_are_borrowed_stay_where_they_are() -> None:
    made = lc.NF4Tensor.quantize(np.random.default_rng(0).standard_normal((8, 256), np.float32))
    memory = np.zeros(made.codes.size + 64, np.uint8)  # 64 bytes behind them can be read
    memory[: made.codes.size] = made.codes
    codes = memory[: made.codes.size]
    parts = {"absmax_codes": made.absmax_codes, "nested_absmax": made.nested_absmax, "nested_offset": made.nested_offset}
    borrowed = lc.NF4Tensor.from_parts(codes, made.shape, **parts, borrow_codes=True)
    assert np.shares_memory(borrowed.codes, memory) and not borrowed.codes.flags.writeable
    del memory, codes  # the tensor holds them
    assert np.array_equal(borrowed.dequantize(), made.dequantize())
    copied = lc.NF4Tensor.from_parts(borrowed.codes, made.shape, **parts)
    assert not np.shares_memory(copied.codes, borrowed.codes)

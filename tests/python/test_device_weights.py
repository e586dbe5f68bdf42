"""What lies on a device, brought back or looked at there: compressed weights byte for byte, Parameters and their gradients."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_values import is_same

import lora_c as lc
from lora_c import _core, ops

RNG = np.random.default_rng(8)
PARTS = ("codes", "absmax", "absmax_codes", "nested_absmax", "nested_map", "lut")
NUMBERS = ("shape", "block_size", "double_quant", "nested_offset", "nested_block_size", "quant_type", "nbytes")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def tables_of_a_file() -> lc.NF4Tensor:
    """With tables that are not the library's, and nested blocks of another size."""
    q = lc.NF4Tensor.quantize(normal(24, 96), block_size=32)
    scales = np.abs(normal(-(-72 // 64))) + 0.5
    return lc.NF4Tensor.from_parts(
        q.codes, q.shape, block_size=32, absmax_codes=q.absmax_codes, nested_absmax=scales, nested_block_size=64,
        nested_map=np.linspace(-1, 1, 256, dtype=np.float32), nested_offset=0.1, lut=np.arange(16, dtype=np.float32),
    )  # fmt: skip


TENSORS = {
    "nf4": lambda: lc.NF4Tensor.quantize(normal(17, 64)),
    "odd sizes, plain scales": lambda: lc.NF4Tensor.quantize(normal(3, 7), double_quant=False, block_size=128),
    "fp4": lambda: lc.NF4Tensor.quantize(normal(9, 33), quant_type="fp4"),
    "int4": lambda: lc.NF4Tensor.quantize(normal(9, 33), quant_type="int4", double_quant=False),
    "a file's tables": tables_of_a_file,
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_goes_there_and_back(device: str, name: str) -> None:
    q = TENSORS[name]()
    there = q.to(device)
    assert isinstance(there, lc.DeviceWeight) and there.device == device and there.to(device) is there
    assert q.to("cpu") is q and lc.to_device(q, "cpu") is q
    for back in (there.to("cpu"), lc.to_device(there, "cpu")):
        assert isinstance(back, lc.NF4Tensor) and back is not q
        assert [getattr(back, n) for n in NUMBERS] == [getattr(q, n) for n in NUMBERS]
        for part in PARTS:
            want = getattr(q, part)
            assert getattr(back, part) is None if want is None else np.array_equal(getattr(back, part), want), part
        assert np.array_equal(back.dequantize(), q.dequantize())
    x = normal(2, q.shape[1])
    assert is_same(device, ops.linear(lc.to_device(x, device), there).to("cpu"), ops.linear(x, q))


@pytest.mark.parametrize("type_", ["Q8_0", "F16", "BF16"])
def test_blocks_of_a_gguf_file_go_there_and_back(device: str, type_: str) -> None:
    w = normal(5, 64)
    if type_ == "Q8_0":
        g = lc.GGMLTensor.quantize(w)
    else:
        halves = w.astype(np.float16 if type_ == "F16" else ml_dtypes.bfloat16)
        g = lc.GGMLTensor.from_blocks(halves.view(np.uint8).ravel(), w.shape, type_)
    there = g.to(device)
    back = there.to("cpu")
    assert g.to("cpu") is g and isinstance(back, lc.GGMLTensor) and (back.type, back.shape) == (type_, g.shape)
    assert np.array_equal(back.blocks, g.blocks)


def test_a_weight_refuses_other_devices(device: str) -> None:
    q = lc.NF4Tensor.quantize(normal(4, 64))
    there = q.to(device)
    with pytest.raises(
        ValueError, match=r"device: expected 'cpu', got 'abacus'; lora_c.to_device\(w.to\('cpu'\), 'abacus'\) brings it"
    ):
        there.to("abacus")
    for tensor in (q, lc.GGMLTensor.quantize(normal(4, 64))):
        with pytest.raises(ValueError, match=f"device: expected one of cpu, {device}.*, got abacus"):
            tensor.to("abacus")
        with pytest.raises(TypeError):
            tensor.to(1)  # type: ignore[arg-type]


def test_copies_of_weights_are_given_back(device: str) -> None:
    def work() -> None:
        there = tables_of_a_file().to(device)
        with pytest.raises(ValueError):
            there.to("abacus")
        there.to("cpu")

    work()  # what a device keeps from then on
    gc.collect()
    before = [_core.memory_report(name)["total"]["live"] for name in ("cpu", device)]
    for _ in range(3):
        work()
    gc.collect()
    assert [_core.memory_report(name)["total"]["live"] for name in ("cpu", device)] == before


# -- Parameters ----------------------------------------------------------------------------------------------------------


def test_a_parameter_is_looked_at_where_it_lies(device: str) -> None:
    values = normal(4, 6)
    for where in ("cpu", device):
        p = lc.Parameter(values, device=where)
        view, gradient = p.view(), p.view_grad()
        assert isinstance(view, np.ndarray if where == "cpu" else lc.DeviceArray) and view.shape == gradient.shape == (4, 6)
        state = [lc.to_device(np.zeros((4, 6), np.float32), where) for _ in range(2)]
        g = np.ones((4, 6), np.float32)
        ops.adamw_step(gradient, lc.to_device(-g, where), *state, step=1, lr=1.0, eps=0.0)  # the gradient becomes 1
        np.testing.assert_allclose(p.read_grad(), g, rtol=1e-6)
        ops.adamw_step(view, gradient, *state, step=1, lr=0.0, weight_decay=0.0)  # reads it, and changes nothing
        assert np.array_equal(p.read(), values)
        assert ops.sum_of_squares(gradient) == pytest.approx(24, rel=1e-6)
        p.write(2 * values)
        p.zero_grad()
        if where != "cpu":
            assert (view.device, view.dtype) == (where, np.float32)
            view, gradient = view.to("cpu"), gradient.to("cpu")
        assert np.array_equal(view, 2 * values) and not gradient.any()
    assert lc.Parameter(values, device=device, requires_grad=False).view_grad() is None
    assert lc.Parameter(values, requires_grad=False).view_grad() is None


def test_a_view_keeps_the_memory_of_its_block(device: str) -> None:
    before = _core.memory_report(device)["total"]["live"]
    one, two = lc.Parameter.block([(3,), (2, 2)], device=device)
    two.write(normal(2, 2))
    want, views = two.read(), [two.view(), one.view_grad(), two.view().reshape(4)]
    del one, two
    gc.collect()
    assert np.array_equal(views[0].to("cpu"), want) and np.array_equal(views[2].to("cpu"), want.ravel())
    assert not views[1].to("cpu").any()
    views.clear()
    gc.collect()
    assert _core.memory_report(device)["total"]["live"] == before


def test_gradients_of_a_layer_are_read_on_the_device(device: str) -> None:
    w, x, dy = normal(8, 16), normal(3, 16), normal(3, 8)
    options: dict[str, Any] = {"r": 2, "B": normal(8, 2)}
    layer = lc.LoRALinear(w, **options, device=device)
    layer.backward(lc.to_device(dy, device), lc.to_device(x, device))
    for p in layer.parameters():
        there = p.view_grad()
        assert isinstance(there, lc.DeviceArray) and np.array_equal(there.to("cpu"), p.read_grad())
        assert ops.sum_of_squares(there) == pytest.approx(float(np.square(p.read_grad().astype(np.float64)).sum()), rel=1e-6)
        ones = lc.to_device(np.ones(there.shape[-1], np.float32), device)
        assert np.array_equal(ops.scale_columns(there, ones).to("cpu"), p.read_grad())


def test_a_view_that_the_operation_writes_is_kept_from_its_inputs(device: str) -> None:
    p = lc.Parameter(normal(4, 4), device=device)
    other = lc.to_device(normal(4, 4), device)
    with pytest.raises(ValueError, match="overlap|share|apart"):
        ops.adamw_step(p.view(), p.view().reshape(4, 4), other, other.reshape(4, 4), step=1, lr=0.1)

"""Arrays, layers and operations on devices: the CPU's results, refusals with the way out, and nothing left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from built import backend_library
from device_values import is_same

import lora_c as lc
from lora_c import _core, ops

RNG = np.random.default_rng(5)
M, H, V = 9, 64, 17


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def as_list(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple) else [results]


X, W, B, GAMMA, HEADS, KEYS = normal(M, H), normal(V, H), normal(V), normal(H), normal(M, 4, 16), normal(M, 2, 16)
IDS, CU, WEIGHT = np.arange(M) % V, [0, 2, M], np.array([0] + [1] * (M - 1), np.float32)
CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {  # ids, lengths, loss weights and frequencies stay the host's
    "rmsnorm": ((X, GAMMA), {}), "rmsnorm_backward": ((X, X, GAMMA), {}), "layernorm": ((X, GAMMA, GAMMA), {}),
    "layernorm_backward": ((X, X, GAMMA), {}), "swiglu": ((X, X), {}), "swiglu_backward": ((X, X, X), {}), "geglu": ((X,), {}),
    "geglu_backward": ((X, X), {}), "reglu": ((X, X), {}), "reglu_backward": ((X, X, X), {}),
    "scale_columns": ((X, GAMMA), {}),
    "scale_columns_backward": ((X, X, GAMMA), {}), "linear": ((X, W, B), {}), "linear_backward": ((normal(M, V), W, X), {}),
    "embedding": ((list(IDS), W), {}), "embedding_backward": ((list(IDS), X, V), {}), "sum_of_squares": ((X,), {}),
    "cross_entropy": ((X, W, [-100, *map(int, IDS[1:])], list(WEIGHT)), {"gradients": True}),
    "values_loss": ((X, normal(M, H), list(WEIGHT)), {"kind": "squared_error", "gradients": True}),
    "rope": ((HEADS, list(IDS), list(1.0 / np.arange(1, 9))), {}), "rope_backward": ((HEADS, list(IDS), [1.0, 0.5]), {}),
    "attention": ((HEADS, KEYS, KEYS, CU), {"sliding_window": 3}), "attention_backward": ((HEADS, HEADS, KEYS, KEYS, CU), {}),
}  # fmt: skip


def host_argument(given: Any) -> Any:
    """Loss weights are written as lists above, to tell them from arrays that go to the device."""
    return np.asarray(given, np.float32) if isinstance(given, list) and isinstance(given[0], np.float32) else given


@pytest.mark.parametrize("name", [name for name in ops.__all__ if name != "adamw_step"])
def test_operations_have_the_results_of_the_cpu(device: str, name: str) -> None:
    arguments, options = CASES[name]
    host = [host_argument(given) for given in arguments]
    there = [lc.to_device(a, device) if isinstance(a, np.ndarray) else b for a, b in zip(arguments, host, strict=True)]
    for got, want in zip(
        as_list(getattr(ops, name)(*there, **options)), as_list(getattr(ops, name)(*host, **options)), strict=True
    ):
        if isinstance(want, float):
            assert got == pytest.approx(want, rel=1e-5)
        else:
            assert isinstance(got, lc.DeviceArray) and got.device == device and is_same(device, got.to("cpu"), want)


def test_adamw_step_changes_arrays_in_place(device: str) -> None:
    host = [normal(5, 7), normal(5, 7), np.zeros((5, 7), np.float32), np.zeros((5, 7), np.float32)]
    there = [lc.to_device(array, device) for array in host]
    for arrays in (host, there):
        ops.adamw_step(*arrays, step=1, lr=0.1)  # type: ignore[arg-type]
    for got, want in zip(there, host, strict=True):
        assert is_same(device, got.to("cpu"), want)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["NF4", "placed", "float32"])
def test_a_layer_learns_as_on_the_cpu(device: str, kind: str, dora: bool) -> None:
    q = lc.NF4Tensor.quantize(W)
    base: Any = {"NF4": q, "placed": lc.to_device(q, device), "float32": W}[kind]
    options: dict[str, Any] = {"r": 4, "lora_dropout": 0.25, "use_dora": dora, "bias": B, "B": normal(V, 4)}
    here = lc.LoRALinear(W if kind == "float32" else q, **options)
    there = lc.LoRALinear(base, **options, device=None if kind == "placed" else device)
    dy = normal(M, V)
    x, dy_there = lc.to_device(X, device), lc.to_device(dy, device)
    assert there.device == device and f"device='{device}'" in repr(there)
    for kind_of_optimizer in (lc.AdamW, lc.AdamW8bit, lc.SGD, lc.Lion, lc.Adafactor, lc.Muon):
        optimizers = [kind_of_optimizer(layer.parameters()) for layer in (here, there)]
        for step in range(2):
            y, y_there = (m.forward(a, training=True, step=step) for m, a in ((here, X), (there, x)))
            assert is_same(device, y_there.to("cpu"), y)
            dx = here.backward(dy, X, training=True, step=step)
            dx_there = there.backward(dy_there, x, training=True, step=step)
            assert is_same(device, dx_there.to("cpu"), dx)
            for p, q_there in zip(here.parameters(), there.parameters(), strict=True):
                assert is_same(device, q_there.grad, p.grad)
            norms = [optimizer.step(lr=1e-4, max_grad_norm=1.0) for optimizer in optimizers]
            assert norms[1] == pytest.approx(norms[0], rel=1e-5)
            for optimizer in optimizers:
                optimizer.zero_grad()
            for p, q_there in zip(here.parameters(), there.parameters(), strict=True):
                assert not q_there.read_grad().any()
                np.testing.assert_allclose(q_there.read(), p.data, rtol=0, atol=1e-4)
                q_there.write(p.data)  # steps that divide by the root of a square may part where a gradient is nearly zero
    assert is_same(device, there.merge().to("cpu"), here.merge())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.uint8, np.int32, np.int64, ml_dtypes.bfloat16])
def test_arrays_go_there_and_back(device: str, dtype: Any) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    there = lc.to_device(array, device)
    assert (there.shape, there.dtype, there.ndim, there.size, there.nbytes) == ((2, 3, 4), array.dtype, 3, 24, array.nbytes)
    assert lc.to_device(there, device) is there and there.to(device) is there
    back = there.reshape(-1, 4).to("cpu")
    assert back.dtype == array.dtype and np.array_equal(back, array.reshape(-1, 4))


def test_nothing_is_copied_without_being_asked_for(device: str) -> None:
    x, q = lc.to_device(X, device), lc.NF4Tensor.quantize(W)
    layer = lc.LoRALinear(q, r=2, device=device)
    there = (
        rf"expected an array on device {device}, got ndarray in the memory of the CPU; use lora_c.to_device\(x, '{device}'\)"
    )
    here = rf"in the memory of the CPU, got a DeviceArray on device {device}; use its to\('cpu'\)"
    for said, call in [
        (f"weight: {there}", lambda: ops.rmsnorm(x, GAMMA)), (f"x: {there}", lambda: layer.forward(X)),
        (rf"w: expected a weight on device {device}, got NF4Tensor", lambda: ops.linear(x, q)),
        (f"x: .*{here}", lambda: lc.LoRALinear(q, r=2).forward(x)), (f"weight: .*{here}", lambda: ops.rmsnorm(X, x)),
        (r"use x.to\('cpu'\)", lambda: np.asarray(x)), (f"ids: .*{here}", lambda: ops.embedding(lc.to_device(IDS, device), W)),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=said):
            call()
    for said, wrong in ((r"ids\[1\] < 17, got 99", lambda: ops.embedding([1, 99], lc.to_device(W, device))),
                        (r"expected memory of device cpu, got a DeviceArray", lambda: ops.linear(X, lc.to_device(W, device))),
                        (r"shape: expected .* 576 elements", lambda: x.reshape(5, -1))):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            wrong()


def test_memory_is_given_back(device: str) -> None:
    def work() -> None:
        x = lc.to_device(X, device)
        layer = lc.LoRALinear(lc.NF4Tensor.quantize(W), r=4, use_dora=True, bias=B, device=device)
        layer.backward(layer.forward(x), x)
        ops.attention(lc.to_device(HEADS, device), *[lc.to_device(KEYS, device)] * 2, CU)
        with pytest.raises(ValueError):
            ops.embedding([99], lc.to_device(W, device))

    work()  # what a device keeps from then on
    gc.collect()
    before = _core.memory_report(device)["total"]["live"]
    work()
    gc.collect()
    assert _core.memory_report(device)["total"]["live"] == before


class Foreign:
    """An array of another library: what a DeviceArray says, asked for with what is recorded."""

    def __init__(self, array: lc.DeviceArray, **changes: Any) -> None:
        self.array, self.changes, self.asked = array, changes, {}

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.changes.get("device", self.array.__dlpack_device__())

    def __dlpack__(self, **asked: Any) -> Any:
        if "old" in self.changes and "max_version" in asked:
            raise TypeError("max_version")
        self.asked = asked
        return self.array.__dlpack__(**asked)


class Interface:
    """The same with __cuda_array_interface__ alone."""

    def __init__(self, array: lc.DeviceArray, **changes: Any) -> None:
        self.array, self.__cuda_array_interface__ = array, array.__cuda_array_interface__ | changes


def main() -> None:
    """With the CUDA plug-in on the shim, whose devices go by the name cuda."""
    x = lc.to_device(X, "cuda")
    stream = x.__cuda_array_interface__["stream"]
    default = [Interface(x, stream=number) for number in (1, 2)]  # the legacy stream, that of the calling thread
    for foreign in (Foreign(x), Foreign(x, old=True), Interface(x), Interface(x, stream=None), *default):
        taken = lc.from_dlpack(foreign)
        assert taken.device == "cuda" and np.array_equal(taken.to("cpu"), X)
        if isinstance(foreign, Foreign):
            assert foreign.asked["stream"] == stream and ("max_version" in foreign.asked) != ("old" in foreign.changes)
        del foreign
        assert np.array_equal(ops.scale_columns(taken, lc.to_device(GAMMA, "cuda")).to("cpu"), X * GAMMA)
    del taken
    live = sys.getrefcount(x)
    taken = lc.from_dlpack(Foreign(x))
    assert sys.getrefcount(x) > live
    del taken
    assert sys.getrefcount(x) == live
    half = lc.from_dlpack(Foreign(lc.to_device(X.astype(ml_dtypes.bfloat16), "cuda")))
    assert half.dtype == ml_dtypes.bfloat16
    frozen = lc.from_dlpack(Interface(x, data=(x.__cuda_array_interface__["data"][0], True)))
    other = lc.to_device(X, "cuda:1")
    for said, call in {
        "no typestr|has a typestr": lambda: half.__cuda_array_interface__,
        "got memory of the CPU; numpy.from_dlpack": lambda: lc.from_dlpack(X),  # type: ignore[arg-type]
        r"got \(13, 0\)": lambda: lc.from_dlpack(Foreign(x, device=(13, 0))),
        "C-contiguous": lambda: lc.from_dlpack(Interface(x, strides=(4, 4 * M))),
        "typestr of float32": lambda: lc.from_dlpack(Interface(x, typestr="<c8")),
        "where x lies": lambda: lc.from_dlpack(x, device="cuda:1"),
        "stream to be None or an int above 0": lambda: lc.from_dlpack(Interface(x, stream=0)),
        "an int above 0, got -1": lambda: lc.from_dlpack(Interface(x, stream=-1)),
        "-1 or an int above 0, got 0": lambda: x.__dlpack__(stream=0),
        "-1 or an int above 0, got -2": lambda: x.__dlpack__(stream=-2),
        "a null pointer": lambda: lc.from_dlpack(Interface(x, data=(0, False))),
        "fits into memory": lambda: lc.from_dlpack(Interface(x, shape=(2**62, 4))),
        "writable": lambda: ops.adamw_step(frozen, frozen, frozen, frozen, step=1, lr=0.1),
        "got one on cuda:1": lambda: ops.scale_columns(x, other),
    }.items():
        try:
            call()
        except (TypeError, ValueError, BufferError) as error:
            assert any(part in str(error) for part in said.replace("\\", "").split("|")), (said, error)
        else:
            raise AssertionError(said)
    print("as the protocols say")


def test_memory_of_gpus_is_shared_with_others() -> None:
    environment = {**os.environ, "LORA_C_BACKENDS": str(backend_library("shim")), "SHIM_NAME": "cuda", "SHIM_DEVICES": "2"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "as the protocols say\n", done.stderr


if __name__ == "__main__":
    main()

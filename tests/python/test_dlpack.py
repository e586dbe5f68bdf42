"""Parameters in other libraries without a copy, by DLPack."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from built import backend_library

import lora_c as lc
from lora_c import Parameter, _core

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def live() -> int:
    return _core.memory_report()["parameters"]["live"]


def test_numpy_reads_and_writes_the_memory_itself() -> None:
    parameter = Parameter(VALUES)
    array = np.from_dlpack(parameter)
    assert array.shape == (2, 3, 4) and array.dtype == np.float32 and np.shares_memory(array, parameter.data)
    array[1, 2, 3] = -5
    assert parameter.data[1, 2, 3] == -5
    parameter.data[0] = 7
    assert (array[0] == 7).all()
    assert parameter.__dlpack_device__() == (1, 0)


def test_one_of_a_block_is_exported_from_where_it_begins() -> None:
    first, second = Parameter.block([(3,), (2, 2)])
    second.data[...] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(np.from_dlpack(second), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(np.from_dlpack(first), np.zeros(3))


@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (2, 3)])
def test_the_memory_lives_as_long_as_its_capsule(max_version: tuple[int, int] | None) -> None:
    gc.collect()
    before = live()
    parameter = Parameter(np.ones(1000, np.float32), requires_grad=False)
    capsule = parameter.__dlpack__(max_version=max_version)
    name = "dltensor_versioned" if max_version and max_version >= (1, 0) else "dltensor"
    assert f'"{name}"' in repr(capsule)
    del parameter
    assert live() > before
    del capsule  # which nobody has taken
    assert live() == before


def test_the_memory_lives_as_long_as_a_consumer_and_ends_on_any_thread() -> None:
    gc.collect()
    before = live()
    held = [np.from_dlpack(Parameter(np.ones(1000, np.float32)))]
    assert live() > before and (held[0] == 1).all()
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert live() == before


def test_a_copy_is_one() -> None:
    parameter = Parameter(VALUES)
    for options in ({"copy": True}, {"copy": True, "dl_device": (1, 0), "max_version": (1, 0)}):
        capsule = parameter.__dlpack__(**options)  # type: ignore[arg-type]
        array = np.from_dlpack(Given(capsule))
        np.testing.assert_array_equal(array, VALUES)
        assert not np.shares_memory(array, parameter.data)
    assert np.shares_memory(np.from_dlpack(Given(parameter.__dlpack__(copy=False))), parameter.data)
    array = parameter.to("cpu")
    assert isinstance(array, np.ndarray) and not np.shares_memory(array, parameter.data)
    np.testing.assert_array_equal(array, VALUES)


class Given:
    """What hands out a capsule that was made before."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"stream": 1}, BufferError, "stream: expected None on the CPU, got 1"),
        ({"max_version": 1}, TypeError, "max_version: expected a tuple of two int, got 1"),
        ({"max_version": (1,)}, TypeError, "max_version: expected a tuple of two int"),
        ({"dl_device": "cpu"}, TypeError, "dl_device: expected a tuple of two int, got 'cpu'"),
        ({"dl_device": (2, 0)}, BufferError, r"dl_device: expected \(1, 0\), .*got \(2, 0\)"),
    ],
)
def test_what_cannot_be_had_is_refused(options: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        Parameter(VALUES).__dlpack__(**options)
    with pytest.raises(ValueError, match="device: expected 'cpu', got 'cuda'"):
        Parameter(VALUES).to("cuda")


def test_memory_that_dlpack_has_no_name_for_is_refused(fake: str) -> None:
    parameter = Parameter(VALUES, device=fake)
    for ask in (parameter.__dlpack__, parameter.__dlpack_device__):
        with pytest.raises(
            BufferError, match="expected one on the CPU or on an NVIDIA GPU, got one on device fake; use its read"
        ):
            ask()
    np.testing.assert_array_equal(parameter.to("cpu"), VALUES)


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64),
    ]  # fmt: skip


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("holder", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64), ("tensor", DLTensor),
    ]  # fmt: skip


class OnGPU:
    """An array of another library that gives this capsule."""

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **asked: object) -> object:
        return self.capsule


def refuse_what_says_nonsense(pointer_of: Callable[[object, bytes], int]) -> None:
    """Capsules that no library should give: one error each, and the capsule stays the giver's."""
    sizes = ctypes.POINTER(ctypes.c_int64)
    nonsense: list[tuple[dict[str, object], str]] = [
        ({"shape": sizes()}, "expected the size of each dimension, got none"),
        ({"shape": (ctypes.c_int64 * 3)(1 << 61, 1, 1), "strides": sizes()}, "fits into memory"),
        ({"shape": (ctypes.c_int64 * 3)(1 << 40, 1 << 40, 1), "strides": sizes()}, "fits into memory"),
        ({"shape": (ctypes.c_int64 * 3)(2, -3, 4)}, "strides|at least one element"),
        ({"strides": (ctypes.c_int64 * 3)(-12, 4, 1)}, "C-contiguous"),
        ({"data": None, "offset": 64}, "expected memory"),
        ({"offset": (1 << 64) - 4}, "expected memory|fits into memory"),
        ({"offset": 2}, "aligned"),
        ({"ndim": 0}, "1 to"),
        ({"ndim": 64}, "1 to"),
        ({"lanes": 4}, "4 lanes"),
        ({"device_id": 1}, "that __dlpack_device__ says"),
    ]
    for changes, said in nonsense:
        parameter = Parameter(VALUES, device="cuda")
        capsule = parameter.__dlpack__(stream=2, max_version=(1, 1))
        tensor = Versioned.from_address(pointer_of(capsule, b"dltensor_versioned")).tensor
        before = {name: getattr(tensor, name) for name in changes}
        for name, value in changes.items():
            setattr(tensor, name, ctypes.cast(value, sizes) if isinstance(value, ctypes.Array) else value)
        with pytest.raises((ValueError, TypeError), match=said):
            lc.from_dlpack(OnGPU(capsule))
        for name, value in before.items():
            setattr(tensor, name, value)
    capsule = Parameter(VALUES, device="cuda").__dlpack__(stream=2, max_version=(1, 1))
    np.testing.assert_array_equal(lc.from_dlpack(OnGPU(capsule)).to("cpu"), VALUES)
    for given in (capsule, None, 7):  # one that was taken, and what is none
        with pytest.raises(ValueError, match="a capsule that nobody took"):
            lc.from_dlpack(OnGPU(given))


def main() -> None:
    """With the CUDA plug-in on the shim, whose devices go by the name cuda: what a GPU's capsule says."""
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    for number, device in enumerate(("cuda", "cuda:1")):
        parameter = Parameter(VALUES, device=device)
        parameter.write(2 * VALUES)
        assert parameter.__dlpack_device__() == (2, number)
        capsule = parameter.__dlpack__(stream=2, max_version=(1, 1), dl_device=(2, number))
        managed = Versioned.from_address(pointer_of(capsule, b"dltensor_versioned"))
        tensor = managed.tensor
        assert (managed.major, managed.minor, managed.flags) == (1, 0, 0)
        assert (tensor.device_type, tensor.device_id, tensor.offset) == (2, number, 0)
        assert (tensor.code, tensor.bits, tensor.lanes) == (2, 32, 1)
        assert (tensor.shape[: tensor.ndim], tensor.strides[: tensor.ndim]) == ([2, 3, 4], [12, 4, 1])
        # The shim's memory is the host's: the values that were asked for before are there.
        values = np.frombuffer(ctypes.string_at(tensor.data, VALUES.nbytes), np.float32)
        np.testing.assert_array_equal(values, 2 * VALUES.ravel())
        host = np.from_dlpack(Given(parameter.__dlpack__(dl_device=(1, 0), copy=True)))
        np.testing.assert_array_equal(host, 2 * VALUES)
        for options in ({"copy": True}, {"dl_device": (1, 0), "copy": False}, {"stream": "x"}):
            with pytest.raises(BufferError):
                parameter.__dlpack__(**options)  # type: ignore[arg-type]
    refuse_what_says_nonsense(pointer_of)
    print("as DLPack says")


def test_a_gpu_is_exported_as_one() -> None:
    environment = {**os.environ, "LORA_C_BACKENDS": str(backend_library("shim")), "SHIM_NAME": "cuda", "SHIM_DEVICES": "2"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "as DLPack says\n", done.stderr


if __name__ == "__main__":
    main()

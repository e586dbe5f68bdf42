"""What outlives its maker on a device: arrays after their module, consumers after producers, after the interpreter's end."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from built import backend_library

BEGIN = """
import atexit, ctypes, gc, sys, threading, time
import numpy as np
import lora_c as lc
from lora_c import _core, ops
DEVICE = {device!r}
VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)
x = lc.to_device(VALUES, DEVICE)
"""

ENDS = {
    "after the module": """
y, q = ops.swiglu(x, x), lc.NF4Tensor.quantize(VALUES).to(DEVICE)
layer, view = lc.LoRALinear(VALUES, r=2, device=DEVICE), lc.Parameter(VALUES, device=DEVICE).view()
before = [y.to("cpu"), q.to("cpu").codes.tobytes(), layer.forward(x).to("cpu")]
for name in [name for name in sys.modules if name.split(".")[0] == "lora_c"]: del sys.modules[name]
del lc, _core, ops
gc.collect()
assert np.array_equal(y.to("cpu"), before[0]) and q.to("cpu").codes.tobytes() == before[1]
assert np.array_equal(layer.forward(x).to("cpu"), before[2]) and np.array_equal(view.to("cpu"), VALUES)
import lora_c as again
z = again.to_device(VALUES, DEVICE)
try:
    again.ops.swiglu(z, x)  # that is not in one order with what the module that went was asked for
except ValueError as error:
    assert f"up: expected an array on device {DEVICE}, got one on {DEVICE} of another loading of lora_c" in str(error), error
else:
    raise AssertionError("taken")
assert np.array_equal(z.to("cpu"), VALUES)
""",
    "at exit": """
def last():
    assert np.array_equal(x.to("cpu"), VALUES) and ops.sum_of_squares(x) == float(np.square(VALUES).sum())
    print("read at the end")
atexit.register(last)
""",
    "in a cycle": """
class Node: pass
node = Node()
node.self, node.array, node.weight = node, x, lc.NF4Tensor.quantize(VALUES).to(DEVICE)
node.view = lc.Parameter(VALUES, device=DEVICE).view_grad()
del x, node
gc.disable()
""",
    "in a finalizer": """
class Node:
    def __init__(self, array): self.array, self.values = array, VALUES
    def __del__(self):
        assert self.array.to("cpu").tobytes() == self.values.tobytes()
        print("read at the end")
kept = Node(x)  # dies with the interpreter
""",
    "while a thread computes": """
begun = threading.Event()
def work():
    while True:
        y = ops.swiglu(x, x)
        y.to("cpu")
        begun.set()
for _ in range(2): threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(0.05)
""",
}


@pytest.mark.parametrize("name", ENDS)
def test_arrays_end_well(device: str, name: str, alone: Callable[..., str]) -> None:
    for _ in range(3 if "thread" in name else 1):
        said = alone(BEGIN.format(device=device) + ENDS[name], gib=64)
    assert said == ("read at the end\n" if "read at the end" in ENDS[name] else "")


MANAGED = """
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
rename = ctypes.pythonapi.PyCapsule_SetName
USED = ctypes.create_string_buffer(b"used_dltensor_versioned")
def taken(array):
    "A consumer that has taken the capsule: its managed tensor, and the deleter to call."
    capsule = array.__dlpack__(stream=2, max_version=(1, 0))
    managed = pointer_of(capsule, b"dltensor_versioned")
    rename(capsule, ctypes.addressof(USED))
    return managed, ctypes.cast(managed + 16, ctypes.POINTER(ctypes.c_void_p))[0]
def live(): return _core.memory_report(DEVICE)["total"]["live"]
rename.argtypes = [ctypes.py_object, ctypes.c_void_p]
"""

CONSUMERS = {
    "a capsule that nobody takes": """
gc.collect()
before = live()
capsule = ops.swiglu(x, x).__dlpack__(max_version=(1, 0))
assert live() > before
del capsule
assert live() == before
""",
    "a consumer outlives the array": """
class Capsule:
    def __init__(self, array): self.capsule = array.__dlpack__(max_version=(1, 0))
    def __dlpack_device__(self): return 2, 0
    def __dlpack__(self, **asked): return self.capsule
before = live()
y = ops.scale_columns(x, lc.to_device(np.full(6, 2, np.float32), DEVICE))
other = lc.from_dlpack(Capsule(y))
again = lc.from_dlpack(other.reshape(2, 12))
del y, other
gc.collect()
assert np.array_equal(again.to("cpu"), 2 * VALUES.reshape(2, 12))
del again
gc.collect()
assert live() == before
""",
    "a consumer ends in a thread that has no GIL": """
before = live()
managed, deleter = taken(ops.swiglu(x, x))
assert live() > before
thread = threading.Thread(target=ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter), args=(managed,))
thread.start()
thread.join()
assert live() == before
""",
    "a consumer ends after the interpreter": """
managed, deleter = taken(ops.swiglu(x, x))
at_exit = ctypes.CDLL(None).__cxa_atexit
at_exit.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
assert at_exit(deleter, managed, None) == 0
""",
    "a producer that is gone": """
class Foreign:
    def __init__(self, array): self.__cuda_array_interface__, self.array = array.__cuda_array_interface__, array
    def __del__(self): ended.append(self.array.size)
ended = []
y = lc.from_dlpack(Foreign(x))
del x
gc.collect()
assert ended == [] and np.array_equal(y.to("cpu"), VALUES)
z = y.reshape(-1)
del y
assert ended == []
del z
assert ended == [24]
""",
}


@pytest.mark.parametrize("name", CONSUMERS)
def test_memory_that_is_shared_ends_with_its_last_user(
    name: str, alone: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {"LORA_C_BACKENDS": os.fspath(backend_library("shim")), "SHIM_NAME": "cuda"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("LORA_C_DEVICE", raising=False)
    alone(BEGIN.format(device="cuda") + MANAGED + CONSUMERS[name], gib=64)

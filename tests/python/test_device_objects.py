"""Parameters, decoders and optimizers on a device that is not the CPU: what they refuse, how long they live, threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core, ops
from lora_c._core import AdamW, Decoder, LoRALinear, Parameter

RNG = np.random.default_rng(0)
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "vocab_size": 50, "max_position_embeddings": 64, "norm_eps": 1e-5, "rope_inv_freq": [1.0] * 8,
}  # fmt: skip
SHAPES = {
    "input_layernorm": (32,), "post_attention_layernorm": (32,), "q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32),
    "o_proj": (32, 32), "gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64),
}  # fmt: skip


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def weights() -> dict[str, np.ndarray]:
    """The same values each time."""
    rng = np.random.default_rng(1)
    whole = {"embed_tokens": (50, 32), "lm_head": (50, 32), "norm": (32,)}
    whole |= {f"layers.{i}.{name}": shape for i in range(2) for name, shape in SHAPES.items()}
    return {name: rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2) for name, shape in whole.items()}


def decoder(values: dict[str, np.ndarray], device: str, trained: tuple[str, ...] = ()) -> tuple[Decoder, list[Parameter]]:
    """A decoder, and Parameters of the weights that are trained."""
    made, parameters = Decoder(**SIZES, device=device), []
    for name, value in values.items():
        if name in trained:
            parameters.append(Parameter(value, name=name, device=device))
        made.set_weight(name, parameters[-1] if name in trained else value)
    return made, parameters


def live(device: str) -> int:
    """Bytes of the device that are in use."""
    gc.collect()
    return _core.memory_report(device)["total"]["live"]


# -- values --------------------------------------------------------------------------------------------------------------


def test_values_are_copied_in_and_out(fake: str) -> None:
    array = random(5, 7)
    p = Parameter(array, device=fake, name="p")
    assert p.device == fake and np.array_equal(p.read(), array) and np.array_equal(p.data, array)
    assert not p.read_grad().any() and Parameter(array, device=fake, requires_grad=False).read_grad() is None
    copy = p.read()
    copy[...] = 0  # which is nobody else's
    assert np.array_equal(p.data, array)
    p.write(array * 2)
    assert np.array_equal(p.data, array * 2)
    p.zero_grad()
    for wrong, error in ((array.astype(np.float64), TypeError), (array.T, ValueError), (array[:2], ValueError)):
        with pytest.raises(error, match="data: expected"):
            p.write(wrong)
    one, two = Parameter.block([(3,), (4, 2)], device=fake)
    two.write(random(4, 2))
    assert not one.data.any() and two.data.all() and one.device == two.device == fake


@pytest.mark.parametrize("name", ["data", "grad"])
def test_writing_into_a_copy_is_refused(fake: str, name: str) -> None:
    p = Parameter(random(3, 4), device=fake)
    with pytest.raises(ValueError, match="read-only"):
        getattr(p, name)[...] = 1
    with pytest.raises(ValueError, match="read-only"):
        getattr(p, name)[0] += 1
    with pytest.raises(AttributeError, match=f"{name}: expected p.write"):
        setattr(p, name, random(3, 4))
    with pytest.raises(BufferError, match=r"expected one on the CPU, got one on device fake; use its read\(\) and write\(\)"):
        memoryview(p)


def test_arrays_are_expected_from_the_memory_of_the_cpu(fake: str) -> None:
    a, b, w = Parameter(random(2, 8), device=fake), Parameter(random(4, 2), device=fake), random(4, 8)
    message = r"expected a float32 array in the memory of the CPU, got a Parameter on device fake; use its read\(\)"
    for name, call in {
        "A": lambda: LoRALinear(w, r=2, A=a),
        "B": lambda: LoRALinear(w, r=2, B=b),
        "magnitude": lambda: LoRALinear(w, r=2, magnitude=Parameter(random(4), device=fake)),
        "data": lambda: Parameter(a),
    }.items():
        with pytest.raises(TypeError, match=f"{name}: {message}"):
            call()
    with pytest.raises(
        TypeError, match=r"w: expected a weight on device fake, got ndarray .*; use lora_c.to_device\(x, 'fake'\)"
    ):
        ops.linear(a, w)
    with pytest.raises(ValueError, match="expected a Parameter on device cpu, got one on fake; make it with device='cpu'"):
        LoRALinear(Parameter(w, device=fake), r=2, device="cpu")
    with pytest.raises(ValueError, match="w: expected a Parameter on device cpu, got one on fake"):
        ops.linear(random(3, 8), Parameter(w, device=fake))


# -- devices that do not fit ---------------------------------------------------------------------------------------------


def test_parameters_of_another_device_are_refused(fake: str) -> None:
    here, there = Parameter(random(32, 32)), Parameter(random(32, 32), device=fake)
    with pytest.raises(ValueError, match="params: expected a Parameter on device cpu, got one on fake"):
        AdamW([here, there])
    with pytest.raises(ValueError, match="params: expected a Parameter on device fake, got one on cpu"):
        AdamW([there, here])
    values = weights()
    for device, wrong in (("cpu", there), (fake, here)):
        made, _ = decoder(values, device)
        match = f"expected a Parameter on device {device}, got one on {wrong.device}; make it with device='{device}'"
        with pytest.raises(ValueError, match=match):
            made.set_weight("layers.0.q_proj", wrong)
        with pytest.raises(ValueError, match=match):
            made.set_weight("norm", Parameter(random(32), device=wrong.device))
        parts = {"A": (2, 32), "B": (32, 2), "magnitude": (32,)}
        for one in parts:
            A, B, m = (Parameter(random(*s), device=wrong.device if n == one else device) for n, s in parts.items())
            with pytest.raises(ValueError, match=f"{one}: {match}"):
                made.set_adapter("layers.0.q_proj", A, B, scale=1.0, magnitude=m)
        made.set_weight("embed_tokens", Parameter(values["embed_tokens"], device=device))
        with pytest.raises(ValueError, match=f"rows: {match}"):
            made.set_token_rows([1], Parameter(random(1, 32), device=wrong.device))
        with pytest.raises(ValueError, match=f"prompt: {match}"):
            made.set_virtual_tokens("prompt", Parameter(random(2, 32), device=wrong.device))
        other, _ = decoder(values, wrong.device)
        with pytest.raises(ValueError, match="cache: expected"):
            made.decode(other.new_cache(8), [1, 2])


@pytest.mark.parametrize("make", [lambda name: Parameter(random(2), device=name), lambda name: Decoder(**SIZES, device=name),
                                  lambda name: Parameter.block([(2,)], device=name), _core.transfers, _core.memory_report,
                                  _core.reset_peak_memory, _core.memory_info,
                                  lambda name: lc.NF4Tensor.quantize(random(2, 2), device=name)])  # fmt: skip
def test_unknown_and_broken_devices(fake: str, make: Callable[[str], Any]) -> None:
    unknown = "device: expected one of cpu, fake, fake:broken, got abacus; `lora-c devices` lists them"
    with pytest.raises(ValueError, match=unknown):
        make("abacus")
    with pytest.raises(lc.DeviceError, match="fake:broken: expected a device that works, got none; use fake"):
        make("fake:broken")
    assert [device.name for device in lc.devices() if device.usable] == ["cpu", fake]


def test_no_memory_left_on_the_device(fake: str) -> None:
    before = live(fake)
    with pytest.raises(MemoryError, match="expected .* bytes of memory, got none"):
        Parameter.block([(1 << 29,), (1 << 29,)], device=fake)
    assert live(fake) == before and Parameter(random(3), device=fake).data.shape == (3,)


# -- lifetimes -----------------------------------------------------------------------------------------------------------


def test_frozen_weights_are_copied_at_once(fake: str) -> None:
    values = weights()
    made, _ = decoder(values, fake)
    expected = made.logits([1, 2, 3])
    for value in values.values():
        value[...] = 0
    assert np.array_equal(made.logits([1, 2, 3]), expected)


def test_everything_is_given_back(fake: str) -> None:
    live(fake)
    before, values = live(fake), weights()
    made, parameters = decoder(values, fake, ("layers.0.q_proj", "norm"))
    optimizer, cache = AdamW(parameters), made.new_cache(16)
    made.decode(cache, [1, 2, 3])
    expected = parameters[0].read()
    del made  # the cache keeps the decoder, the decoder its weights
    assert cache.length() == 3 and live(fake) > before
    del cache, optimizer
    gc.collect()
    assert np.array_equal(parameters[0].read(), expected)  # it outlives all that used it
    assert live(fake) - before == 2 * 4 * (32 * 32 + 32)
    one = parameters.pop()
    del parameters
    assert np.array_equal(one.read(), values[one.name])
    del one
    assert live(fake) == before


def test_a_weight_that_is_replaced_is_given_back(fake: str) -> None:
    values = weights()
    made, _ = decoder(values, fake)
    before = live(fake)
    for _ in range(3):
        made.set_weight("layers.0.q_proj", values["layers.0.q_proj"])
    assert live(fake) == before


ORDERS = """
import itertools, gc, sys
import numpy as np
import lora_c as lc
from lora_c import _core
from lora_c._core import AdamW, Decoder, Parameter
for order in itertools.permutations(range(4)):
    d = Decoder(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
                head_dim=8, vocab_size=9, max_position_embeddings=16, norm_eps=1e-5, rope_inv_freq=[1.0] * 4, device="fake")
    p = Parameter(np.ones((8, 8), np.float32), device="fake")
    d.set_weight("layers.0.q_proj", p)
    made = [d, p, AdamW([p]), d.new_cache(4)]
    del d, p
    for i in order:
        made[i] = None
        gc.collect()
kept = [Parameter(np.ones(3, np.float32), device="fake")]
del sys.modules["lora_c._core"], _core, lc._core, AdamW, Decoder, Parameter
gc.collect()
from lora_c import _core as again
own = again.Parameter(np.full(3, 2, np.float32), device="fake")
assert kept[0].read().tolist() == [1, 1, 1] and own.read().tolist() == [2, 2, 2]
kept.append(own)  # lives until the interpreter ends
"""


def test_objects_end_in_any_order_and_modules_are_loaded_again(fake: str, alone: Callable[..., str]) -> None:
    alone(ORDERS, gib=64)


def test_a_pass_that_is_stopped_leaves_nothing_behind(fake: str) -> None:
    found = []
    for device in ("cpu", fake):
        made, parameters = decoder(weights(), device, ("layers.0.q_proj", "norm", "embed_tokens"))
        batch, optimizer = ([1, 2, 3, 4], [0, 4], [2, 3, 4, 5], np.ones(4, np.float32)), AdamW(parameters)
        made.forward_backward(*batch)
        made.stopping = True
        with pytest.raises(_core.PassStopped):
            made.forward_backward(*batch)
        made.stopping = False
        optimizer.zero_grad()
        losses = [made.forward_backward(*batch), optimizer.step(lr=1e-2), made.loss(*batch)]
        found.append([losses, *(p.read().tolist() for p in parameters), *(p.read_grad().tolist() for p in parameters)])
    assert found[0] == found[1]


# -- threads -------------------------------------------------------------------------------------------------------------


def test_threads_share_a_device(fake: str) -> None:
    values = weights()
    expected = decoder(values, "cpu")[0].logits([1, 2, 3]).tobytes()
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(15):
                made, _ = decoder(values, fake)
                array = rng.standard_normal((17, 9)).astype(np.float32)
                p = Parameter(array, device=fake)
                if made.logits([1, 2, 3]).tobytes() != expected or not np.array_equal(p.read(), array):
                    wrong.append("other numbers")
                p.write(2 * array)
                if not np.array_equal(p.data, 2 * array):
                    wrong.append("other values")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_decoder_in_use_by_another_thread_is_refused(fake: str) -> None:
    made, _ = decoder(weights(), fake)
    refused, stop = [], threading.Event()

    def loop() -> None:
        while not stop.is_set():
            try:
                made.logits([1] * 64)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert all("in use by another thread" in line for line in refused)
    assert np.isfinite(made.logits([1, 2])).all()


def test_the_precision_of_the_module_is_that_of_every_device(device: str) -> None:
    x, w = random(64, 128), random(64, 128)
    there = [lc.to_device(array, device) for array in (x, w)]  # which opens it
    want = x.astype(np.float64) @ w.T.astype(np.float64)
    try:
        for precision, least, most in (("fast", 1e-4, 1e-2), ("exact", 0.0, 2e-6), ("fast", 1e-4, 1e-2)):
            lc.set_precision(precision)
            error = np.abs(ops.linear(*there).to("cpu") - want).max() / np.abs(want).max()
            assert least <= error < most, precision
    finally:
        lc.set_precision("exact")

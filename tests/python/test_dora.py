"""DoRA on one layer: `LoRALinear(..., use_dora=True)` against the float64 reference."""

import numpy as np
import pytest

from lora_c import _core
from lora_c import reference as ref
from lora_c._core import LoRALinear, NF4Tensor, Parameter

M, K, N, R = 11, 64, 37, 4


@pytest.fixture
def arrays():
    rng = np.random.default_rng(5)
    shapes = {"x": (M, K), "w": (N, K), "a": (R, K), "b": (N, R), "m": (N,), "dy": (M, N), "bias": (N,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("quantized", [False, True])
def test_forward_backward_and_merge(arrays, quantized):
    x, w, a, b, m, dy, bias = arrays.values()
    base = NF4Tensor.quantize(w) if quantized else w
    w = base.dequantize() if quantized else w
    layer = LoRALinear(base, R, lora_alpha=3.0, A=a, B=b, magnitude=m, bias=bias)
    norm = ref.dora_norm(w, a, b, 0.75)
    close(layer.forward(x), ref.dora_linear(x, w, a, b, 0.75, m, norm, bias))
    want = ref.dora_linear_backward(dy, x, w, a, b, 0.75, m, norm)
    got = (layer.backward(dy, x), layer.A.grad, layer.B.grad, layer.magnitude.grad)
    for one, other in zip(got, want, strict=True):
        close(one, other)
    merged = layer.merge()
    close(merged, (m / norm)[:, None] * (w + 0.75 * b @ a))
    close(layer.forward(x), ref.linear(x, merged, bias))
    assert layer.parameters() == [layer.A, layer.B, layer.magnitude]


def test_fresh_dora_changes_nothing_and_follows_its_weights(arrays):
    x, w = arrays["x"], arrays["w"]
    layer = LoRALinear(w, R, use_dora=True)
    close(layer.magnitude.data, np.linalg.norm(w.astype(np.float64), axis=1))
    close(layer.forward(x), ref.linear(x, w))
    layer.B.data[...] = arrays["b"]  # the norms are those of the present weights
    norm = ref.dora_norm(w, layer.A.data, arrays["b"], layer.scaling)
    close(layer.forward(x), ref.dora_linear(x, w, layer.A.data, arrays["b"], layer.scaling, layer.magnitude.data, norm))
    assert LoRALinear(w, R).magnitude is None


def test_dropout_is_the_same_in_both_directions(arrays):
    x, w, a, b, m, dy, _ = arrays.values()
    layer = LoRALinear(w, R, A=a, B=b, magnitude=m, lora_dropout=0.4, seed=3)
    y = layer.forward(x, training=True, step=9)
    assert np.array_equal(y, layer.forward(x, training=True, step=9))
    assert not np.allclose(y, layer.forward(x, training=True, step=10))
    dx = layer.backward(dy, x, training=True, step=9)
    # y is linear in x, and in each parameter with the norm held: <dy, y> = <dx, x>
    np.testing.assert_allclose((dx * x).sum(), (dy * y).sum(), rtol=1e-3)


def test_bits_do_not_depend_on_the_threads(arrays):
    x, w, a, b, m, dy, _ = arrays.values()
    found = []
    for threads in (1, 2):
        _core.set_num_threads(threads)
        layer = LoRALinear(w, R, A=a, B=b, magnitude=m, lora_dropout=0.2)
        y, dx = layer.forward(x, training=True, step=0), layer.backward(dy, x, training=True, step=0)
        found.append([y, dx, layer.A.grad.copy(), layer.B.grad.copy(), layer.magnitude.grad.copy()])
    _core.set_num_threads(0)
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_refusals(arrays):
    w, m = arrays["w"], arrays["m"]
    with pytest.raises(ValueError, match="expected shape"):
        LoRALinear(w, R, magnitude=m[:-1].copy())
    with pytest.raises(TypeError, match="magnitude"):
        LoRALinear(w, R, magnitude=m.astype(np.float64))
    with pytest.raises(ValueError, match="sign: expected 1 with DoRA"):
        LoRALinear(w, R, use_dora=True).merge(sign=-1.0)
    layer = LoRALinear(w, R, magnitude=Parameter(np.ones(N, np.float32)))
    with pytest.raises(ValueError, match="overlap"):
        layer.forward(arrays["x"][:1], out=layer.magnitude.data[None])

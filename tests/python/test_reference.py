"""lora_c.reference against central differences: the oracle itself must be right."""

import numpy as np
import pytest

from lora_c import reference as ref

RNG = np.random.default_rng(7)


def central_difference(function, x, step=1e-6):
    """d function / dx by (f(x + h) - f(x - h)) / 2h, in float64."""
    x = np.array(x, np.float64)
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + step
        up = function(x)
        x[i] = old - step
        down = function(x)
        x[i] = old
        grad[i] = (up - down) / (2 * step)
    return grad


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-8)


def test_lora_linear_gradients():
    x, w, a, b = (RNG.standard_normal(s) for s in ((4, 5), (3, 5), (2, 5), (3, 2)))
    dy = RNG.standard_normal((4, 3))
    dx, da, db = ref.lora_linear_backward(dy, x, w, a, b, 1.7)
    close(dx, central_difference(lambda t: (dy * ref.lora_linear(t, w, a, b, 1.7)).sum(), x))
    close(da, central_difference(lambda t: (dy * ref.lora_linear(x, w, t, b, 1.7)).sum(), a))
    close(db, central_difference(lambda t: (dy * ref.lora_linear(x, w, a, t, 1.7)).sum(), b))


@pytest.mark.parametrize("dropped", [False, True])
def test_dora_gradients_with_a_constant_norm(dropped):
    x, w, a, b, dy = (RNG.standard_normal(s) for s in ((4, 5), (3, 5), (2, 5), (3, 2), (4, 3)))
    m, mask = RNG.standard_normal(3), (RNG.random((4, 5)) > 0.4) / 0.6 if dropped else 1.0
    norm = ref.dora_norm(w, a, b, 1.7)
    close(norm**2, ((w + 1.7 * b @ a) ** 2).sum(axis=1))

    def loss(x=x, a=a, b=b, m=m):
        return (dy * ref.dora_linear(x, w, a, b, 1.7, m, norm, mask=mask)).sum()

    got = ref.dora_linear_backward(dy, x, w, a, b, 1.7, m, norm, mask)
    for gradient, name, value in zip(got, "xabm", (x, a, b, m), strict=True):
        close(gradient, central_difference(lambda t, name=name: loss(**{name: t}), value))


def test_rmsnorm_gradients():
    x, w, dy = RNG.standard_normal((3, 6)), RNG.standard_normal(6), RNG.standard_normal((3, 6))
    dx, dw = ref.rmsnorm_backward(dy, x, w, 1e-5)
    close(dx, central_difference(lambda t: (dy * ref.rmsnorm(t, w, 1e-5)).sum(), x))
    close(dw, central_difference(lambda t: (dy * ref.rmsnorm(x, t, 1e-5)).sum(), w))


def test_norms_of_gemma_and_gpt2_gradients():
    x, w, b, dy = RNG.standard_normal((3, 6)), RNG.standard_normal(6), RNG.standard_normal(6), RNG.standard_normal((3, 6))
    close(ref.rmsnorm(x, w, 1e-5, weight_offset=1.0), ref.rmsnorm(x, 1 + w, 1e-5))
    dx, dw = ref.rmsnorm_backward(dy, x, w, 1e-5, weight_offset=1.0)
    close(dx, central_difference(lambda t: (dy * ref.rmsnorm(t, w, 1e-5, 1.0)).sum(), x))
    close(dw, central_difference(lambda t: (dy * ref.rmsnorm(x, t, 1e-5, 1.0)).sum(), w))
    z = ref.layernorm(x, np.ones(6), np.zeros(6), 0.0)
    close(z.mean(axis=1), np.zeros(3))
    close((z * z).mean(axis=1), np.ones(3))
    dx, dw, db = ref.layernorm_backward(dy, x, w, 1e-2)
    close(dx, central_difference(lambda t: (dy * ref.layernorm(t, w, b, 1e-2)).sum(), x))
    close(dw, central_difference(lambda t: (dy * ref.layernorm(x, t, b, 1e-2)).sum(), w))
    close(db, central_difference(lambda t: (dy * ref.layernorm(x, w, t, 1e-2)).sum(), b))


def test_geglu_and_softcap_gradients():
    g, u, dh = (RNG.standard_normal((3, 4)) for _ in range(3))
    dg, du = ref.geglu_backward(dh, g, u)
    close(dg, central_difference(lambda t: (dh * ref.geglu(t, u)).sum(), g))
    close(du, central_difference(lambda t: (dh * ref.geglu(g, t)).sum(), u))
    close(ref.geglu_backward(dh, g)[0], central_difference(lambda t: (dh * ref.gelu(t)).sum(), g))
    slope = ref.softcap_slope(ref.softcap(3 * g, 1.5), 1.5)
    close(dh * slope, central_difference(lambda t: (dh * ref.softcap(t, 1.5)).sum(), 3 * g))
    close(ref.softcap(g, 0.0), g)


def test_rope_backward_is_the_gradient_and_rotation_keeps_length():
    x, dy = RNG.standard_normal((4, 2, 6)), RNG.standard_normal((4, 2, 6))
    positions, inv_freq = np.arange(4), np.array([1.0, 0.1, 0.01])
    close(
        ref.rope(dy, positions, inv_freq, backward=True),
        central_difference(lambda t: (dy * ref.rope(t, positions, inv_freq)).sum(), x),
    )
    close(np.linalg.norm(ref.rope(x, positions, inv_freq), axis=-1), np.linalg.norm(x, axis=-1))


def test_swiglu_gradients():
    g, u, dh = (RNG.standard_normal((3, 4)) for _ in range(3))
    dg, du = ref.swiglu_backward(dh, g, u)
    close(dg, central_difference(lambda t: (dh * ref.swiglu(t, u)).sum(), g))
    close(du, central_difference(lambda t: (dh * ref.swiglu(g, t)).sum(), u))


@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (2, 0.0), (0, 0.8)])
def test_attention_gradients(window, cap):
    q, k, v = RNG.standard_normal((6, 4, 3)), RNG.standard_normal((6, 2, 3)), RNG.standard_normal((6, 2, 3))
    dout, cu = RNG.standard_normal((6, 4, 3)), [0, 4, 6]
    dq, dk, dv = ref.attention_backward(dout, q, k, v, cu, sliding_window=window, softcap=cap)

    def run(q, k, v):
        return (dout * ref.attention(q, k, v, cu, sliding_window=window, softcap=cap)).sum()

    close(dq, central_difference(lambda t: run(t, k, v), q))
    close(dk, central_difference(lambda t: run(q, t, v), k))
    close(dv, central_difference(lambda t: run(q, k, t), v))


def test_attention_never_crosses_segments():
    q, k, v = (RNG.standard_normal((5, 2, 3)) for _ in range(3))
    whole = ref.attention(q, k, v, [0, 2, 5])
    np.testing.assert_array_equal(whole[2:], ref.attention(q[2:], k[2:], v[2:], [0, 3]))


def test_values_loss_gradients():
    rng = np.random.default_rng(5)
    y, values, weight = rng.standard_normal((4, 3)), rng.random((4, 3)), rng.random(4)
    for kind in ("squared_error", "binary_entropy"):
        dy = ref.values_loss_backward(y, values, weight, kind)
        close(dy, central_difference(lambda t, kind=kind: ref.values_loss(t, values, weight, kind), y))


def test_cross_entropy_gradients():
    x, w = RNG.standard_normal((4, 3)), RNG.standard_normal((5, 3))
    targets, weight = np.array([0, 4, 2, 1]), np.array([1.0, 0.0, 2.0, 0.5])
    dx, dw = ref.linear_cross_entropy_backward(x, w, targets, weight)
    close(dx, central_difference(lambda t: ref.linear_cross_entropy(t, w, targets, weight), x))
    close(dw, central_difference(lambda t: ref.linear_cross_entropy(x, t, targets, weight), w))


def test_embedding_gradient():
    ids, w, dy = np.array([1, 3, 1]), RNG.standard_normal((4, 2)), RNG.standard_normal((3, 2))
    close(ref.embedding_backward(ids, dy, 4), central_difference(lambda t: (dy * ref.embedding(ids, t)).sum(), w))


def test_loss_gradients_behind_scale_and_softcap():
    x, w = RNG.standard_normal((4, 3)), RNG.standard_normal((5, 3))
    args = ([0, 4, 2, 1], [1.0, 0.0, 2.0, 0.5], 0.7, 1.2)
    dx, dw = ref.linear_cross_entropy_backward(x, w, *args)
    close(dx, central_difference(lambda t: ref.linear_cross_entropy(t, w, *args), x))
    close(dw, central_difference(lambda t: ref.linear_cross_entropy(x, t, *args), w))

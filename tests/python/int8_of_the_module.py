"""The precision int8 of the module, which every layer of the process has: test_precision_int8.py runs these by themselves."""

import numpy as np
import pytest

import lora_c as lc
from lora_c import _core
from lora_c.checkpoints.model_names import BASE_MODEL
from lora_c.errors import ConfigError
from lora_c.families.shapes import SHAPES
from lora_c.planning.subject import subject_of_shape


@pytest.fixture(autouse=True)
def settings():
    isa, threads = _core.get_isa(), _core.get_num_threads()
    yield
    _core.set_isa(isa)
    _core.set_num_threads(threads)
    lc.set_precision("exact")


def test_settings(monkeypatch):
    lc.set_precision("int8")
    assert lc.get_precision() == "int8"
    decoder = lc.load_model(BASE_MODEL, progress=False).decoder
    assert decoder.precision == "int8"
    assert lc.TrainConfig(precision="int8").precision == "int8"
    monkeypatch.setenv("LORA_C_PRECISION", "int8")
    from lora_c.generation.choosing import precision_of

    assert precision_of(lc.GenerationConfig()) == "int8"


def test_a_layer_is_within_the_error_of_8_bits_and_not_of_16():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 256), np.float32)
    base = lc.NF4Tensor.quantize(rng.standard_normal((96, 256), np.float32))
    layer = lc.LoRALinear(base, r=8, lora_alpha=16)  # B is zero: the base alone
    w = base.dequantize().astype(np.float64)
    lc.set_precision("int8")

    def step(values: np.ndarray) -> np.ndarray:
        tops = np.abs(values).reshape(len(values), -1, 64).max(axis=2, keepdims=True)
        return np.broadcast_to(tops / 254 * (1 + 1e-4), (len(values), values.shape[1] // 64, 64)).reshape(values.shape)

    e_x, e_w = step(x.astype(np.float64)), step(w)
    bound = e_x @ np.abs(w).T + np.abs(x) @ e_w.T + e_x @ e_w.T + 1e-5 * (np.abs(x) @ np.abs(w).T)
    error = np.abs(layer.forward(x) - x.astype(np.float64) @ w.T)
    assert np.all(error <= bound)
    assert error.mean() > 1e-3  # it is int8 that computed


def test_bits_do_not_depend_on_the_rung():
    _core.set_isa("portable")  # attention and norms are the rung's own, so of one layer
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 192), np.float32)
    base = lc.NF4Tensor.quantize(rng.standard_normal((80, 192), np.float32))
    lc.set_precision("int8")
    want = lc.LoRALinear(base, r=4).forward(x)
    for isa in ("avx2", "avx512"):
        try:
            _core.set_isa(isa)
        except NotImplementedError:
            continue
        np.testing.assert_array_equal(lc.LoRALinear(base, r=4).forward(x), want)


def test_values_that_are_not_finite_are_not_hidden():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((30, 128), np.float32)
    x[3, 70], x[7, 1] = np.nan, np.inf
    lc.set_precision("int8")
    y = lc.LoRALinear(rng.standard_normal((48, 128), np.float32), r=4).forward(x)
    assert not np.isfinite(y[[3, 7]]).any() and np.isfinite(np.delete(y, [3, 7], axis=0)).all()


def test_a_plan_for_a_gpu_refuses_it_and_leaves_the_process_free_to_use_it():
    config, shape = lc.TrainConfig(precision="int8"), next(iter(SHAPES))
    with pytest.raises(ConfigError, match="precision: expected exact or fast on a GPU, got int8"):
        subject_of_shape(shape, config, lc.LoraConfig(), "meta:8.9").forecast()
    assert subject_of_shape(shape, config, lc.LoraConfig()).forecast().total > 0
    lc.set_precision("int8")
    assert lc.get_precision() == "int8"

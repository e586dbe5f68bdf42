"""A model of a few layers of a subject, with synthetic weights in its forms: what a measurement of seconds is made on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .._core import Parameter
from ..bench_shapes import normals
from ..configs import AdapterConfig, LoraConfig, StackConfig
from ..families.architectures import Architecture, WeightSpec
from ..model.model import Model
from ..training.base_options import add_adapters
from ..weights.forms import Form
from ..weights.kinds import Weights
from ..weights.quantization import Quantization
from .subject import Subject

_DRAWN = 1 << 20  # elements that are drawn; a larger array repeats them
_PER_LAYER = ("sliding_window", "layer_rope")
# As in a sample all layers may be one: what is larger than this is in no cache anyway.
SHARED_FROM = 16 << 20


def sample_architecture(architecture: Architecture, layers: int, narrower: int = 1) -> Architecture:
    """Return the architecture with fewer layers, and with widths and heads divided."""
    kwargs: dict[str, Any] = dict(architecture.decoder_kwargs)
    for name in _PER_LAYER:
        if isinstance(kwargs.get(name), (list, tuple)):
            kwargs[name] = list(kwargs[name])[:layers]
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        kwargs[name] = max(1, int(kwargs[name]) // narrower)
    return replace(architecture, decoder_kwargs=kwargs | {"num_hidden_layers": layers})


def sample_model(subject: Subject, layers: int, narrower: int = 1) -> Model:
    """Make a model of so many layers of the subject, which trains what the subject trains."""
    architecture = sample_architecture(subject.model.architecture, layers, narrower)
    weights, made = Weights(), {}
    for spec in architecture.weights():
        key = spec.name
        if spec.name.startswith("layers.") and np.prod(spec.shape) >= SHARED_FROM:
            key = spec.name.split(".", 2)[2]
        if key not in made:
            made[key] = _weight(spec, subject)
        weights.values[spec.name] = made[key]
        weights.stored_dtypes[spec.name] = np.dtype(np.float32)
    config = dict(subject.model.config)
    model = Model(config, architecture, weights, Path(subject.name), None, subject.model.quantization)
    if subject.config.method in ("lora", "qlora") and subject.adapter is not None:
        add_adapters(model, _plain(subject.adapter))
    return model


def _plain(adapter: AdapterConfig | StackConfig) -> AdapterConfig | StackConfig:
    """The same size and speed, begun without reading the base."""
    if isinstance(adapter, StackConfig):
        return adapter.model_copy(update={"adapters": {name: _plain(part) for name, part in adapter.adapters.items()}})
    if not isinstance(adapter, LoraConfig):
        return adapter
    everywhere = {"layers_to_transform": None, "layers_pattern": None}  # which layers there are not all of
    return adapter.model_copy(update={"init_lora_weights": True, "loftq_config": {}} | everywhere)


def _weight(spec: WeightSpec, subject: Subject) -> Any:
    if isinstance(subject.model.weights.get(spec.name), Parameter):
        return Parameter(_values(spec), name=spec.file_name)
    if spec.kind == "vector":
        return np.zeros(spec.shape, np.float32) if spec.name.endswith(".bias") else np.ones(spec.shape, np.float32)
    form = subject.model.forms[spec.name]
    if form.kind == "float32":
        return _values(spec)
    quantization = _quantization(form)
    if quantization is not None and quantization.fits(spec.shape):
        return quantization.quantize(_values(spec))
    return _values(spec, ml_dtypes.bfloat16)


def _quantization(form: Form) -> Quantization | None:
    """Of blocks of GGUF files that cannot be made, those of 8 bits stand for all."""
    if form.kind == "4bit":
        return form.quantization
    return None if form.kind in ("bfloat16", "BF16", "F16") else Quantization("q8_0")


def _values(spec: WeightSpec, dtype: Any = np.float32) -> NDArray[Any]:
    if spec.kind == "vector":
        return np.zeros(spec.shape, np.float32) if spec.name.endswith(".bias") else np.ones(spec.shape, np.float32)
    scale = float(spec.shape[1]) ** -0.5 if spec.kind == "projection" else 0.02
    count = int(np.prod(spec.shape))
    return np.resize(normals(0, (min(count, _DRAWN),), scale).astype(dtype), spec.shape)

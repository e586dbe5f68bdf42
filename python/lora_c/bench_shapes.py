"""Models of well-known shapes with synthetic weights: speed and memory depend on the shape, not on what was learned.

Nothing is read and nothing is written. A weight is a function of its number in the model and of its shape (Philox, a generator
that counts), so that a shape has the same weights on every machine.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .families.shapes import SHAPES as PUBLISHED
from .families.shapes import Shape

if TYPE_CHECKING:
    from .families.architectures import Architecture, WeightSpec
    from .model.model import Model
    from .weights.quantization import Quantization

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_LAYER = re.compile(r"^layers\.\d+\.")
_CHUNK = 1 << 22  # elements with a key of the generator of their own: drawn side by side


# Of tests, beside those that are published.
_TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 384, "rope_theta": 10000.0, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False, "vocab_size": 512, "max_position_embeddings": 1024,
}  # fmt: skip
SHAPES: dict[str, Shape] = {"tiny": Shape(_TINY, "lora-c", head="quantized"), **PUBLISHED}


def synthetic_model(
    name: str, quantization: Quantization | None = None, device: str | None = None, *, share_layers: bool | None = None
) -> Model:
    """Make a model of one of `SHAPES` with synthetic weights and without a tokenizer.

    Parameters
    ----------
    name : str
        One of `SHAPES`.
    quantization : Quantization, optional
        Of the projections; by default they are bfloat16.
    device : str, optional
        As `load_model` takes it.
    share_layers : bool, optional
        Whether all layers have the weights of the first, in one place of the host's memory. By default so on other devices
        than the CPU: there each layer has a copy of its own in any case, and the host needs memory for a single one.

    Raises
    ------
    ConfigError
        There is no such shape or device.
    DeviceError
        The device cannot be used.
    """
    from .families.architectures import architecture_of
    from .model.device_list import open_device
    from .model.model import Model
    from .weights.quantization import NF4

    shape = shape_named(name)
    device = open_device(device)
    architecture = architecture_of(shape.config)
    weights = _weights(architecture, shape, quantization, device != "cpu" if share_layers is None else share_layers)
    return Model(dict(shape.config), architecture, weights, Path(name), None, quantization or NF4, device=device)


def shape_named(name: str) -> Shape:
    """Return one of `SHAPES`.

    Raises
    ------
    ConfigError
        There is none of this name; the message lists them.
    """
    if name not in SHAPES:
        raise ConfigError(f"shape: expected one of {', '.join(SHAPES)}, got {name!r}; for a model of yours give --model")
    return SHAPES[name]


def _weights(architecture: Architecture, shape: Shape, quantization: Quantization | None, share_layers: bool) -> Any:
    from .weights.kinds import Weights

    weights = Weights()
    made: dict[str, Any] = {}  # by the name without the number of the layer, where layers share
    for number, spec in enumerate(architecture.weights()):
        key = _LAYER.sub("", spec.name) if share_layers else spec.name
        if key not in made:
            made[key] = _synthetic(spec, number, _form(spec, shape, quantization))
        weights.values[spec.name] = made[key]
        weights.stored_dtypes[spec.name] = _BFLOAT16
    return weights


def _form(spec: WeightSpec, shape: Shape, quantization: Quantization | None) -> Quantization | None:
    """How a matrix is quantized; None: bfloat16."""
    quantized = spec.kind == "projection" or (spec.kind == "head" and shape.head == "quantized")
    return quantization if quantized and quantization is not None and quantization.fits(spec.shape) else None


def _synthetic(spec: WeightSpec, number: int, form: Quantization | None) -> Any:
    """Norms of ones, small biases, matrices that keep the size of what goes through them."""
    if spec.kind == "vector":
        return normals(number, spec.shape, 0.02) if spec.name.endswith(".bias") else np.ones(spec.shape, np.float32)
    scale = float(spec.shape[1]) ** -0.5 if spec.kind == "projection" else 0.02
    values = normals(number, spec.shape, scale)
    return values.astype(_BFLOAT16) if form is None else form.quantize(values)


def normals(number: int, shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
    """Return numbers from N(0, scale^2), a function of the arguments alone.

    Parameters
    ----------
    number : int
        Of the array: others have other numbers.
    shape : tuple of int
        Of the array.
    scale : float
        Standard deviation.
    """
    values = np.empty(int(np.prod(shape)), np.float32)
    chunks = range(0, len(values), _CHUNK)

    def draw(first: int) -> None:
        part = values[first : first + _CHUNK]
        np.random.Generator(np.random.Philox(key=[number, first // _CHUNK])).standard_normal(out=part, dtype=np.float32)
        part *= np.float32(scale)

    if len(chunks) < 2:
        draw(0)
    else:
        with ThreadPoolExecutor() as pool:
            list(pool.map(draw, chunks))
    return values.reshape(shape)

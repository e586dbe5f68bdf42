"""What the options of a run make of its base: how it is loaded, and what is put on it to be trained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..configs import AdapterConfig, StackConfig, TrainConfig
from ..weights.quantization import Quantization

if TYPE_CHECKING:
    from ..model.model import Model


def quantization_for(config: TrainConfig) -> Quantization:
    """The type that method qlora brings the base's matrices to."""
    return Quantization(config.quant_type, config.block_size, config.double_quant)


def base_options(path: str | os.PathLike[str], config: TrainConfig) -> dict[str, Any]:
    """Return what `load_model` is told by the method of a run.

    What is quantized already (a prequantized folder, blocks of a GGUF file) stays as it is.
    """
    from ..gguf.checkpoint import has_blocks

    if config.method == "qlora" and not has_blocks(path):
        return quantization_for(config).options()
    return {"trainable": config.method} if config.method in ("head", "full") else {}


def add_adapters(model: Model, config: AdapterConfig | StackConfig) -> None:
    """Put what is trained on the model: an adapter, or several that are used together."""
    if not isinstance(config, StackConfig):
        model.add_adapter(config)
        return
    for name, part in config.adapters.items():
        model.add_adapter(part, name)
    model.set_adapter(list(config.adapters))

"""How a model is shown: a line, and a table in notebooks. Methods of `Model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core import GGMLTensor
from ..checkpoints.model_names import name_for_others
from ..configs import AdapterConfig, LoraConfig, StackConfig
from ..configs.adapters import kind_name
from ..display.html_table import html_table
from ..weights.kinds import format_of

if TYPE_CHECKING:
    from .model import Model


def text(model: Model) -> str:
    """One line: family, size, format, adapter."""
    adapter = f", adapter {_described(model.adapter_config)}" if model.adapter_config else ""
    device = f" on {model.device}" if model.device != "cpu" else ""
    what = f"{model.architecture.name}, {model.num_parameters():,} parameters, {_format(model)}"
    return f"Model({what}{device}{adapter})"


def _format(model: Model) -> str:
    if model.is_quantized:
        return model.quantization.quant_type.upper()
    blocks = (weight for weight in model.weights.values() if isinstance(weight, GGMLTensor))
    last = model.weights["layers.0.down_proj"]
    return format_of(last if isinstance(last, GGMLTensor) else next(blocks, last))


def html(model: Model) -> str:
    """A table for notebooks."""
    config = model.adapter_config
    rows: dict[str, object] = {
        "source": name_for_others(model.source),
        "parameters": model.num_parameters(),
        "trainable": model.num_parameters(only_trainable=True),
        "weights": _format(model),
        "layers": model.decoder.config["num_hidden_layers"],
        "hidden size": model.decoder.config["hidden_size"],
        "vocabulary": model.decoder.config["vocab_size"],
        "context": model.context_length,
    }
    if model.labels is not None:
        rows["labels"] = f"{len(model.labels)}, {model.labels.problem_type}"
    if model.device != "cpu":
        rows["device"] = model.device
    if config is not None:
        matrices = f", {len(model.adapters)} matrices" if model.adapters else ""
        rows["adapter"] = f"{model.active_adapter}: {_described(config)}{matrices}"
    return html_table(model.architecture.name, rows)


def _described(config: AdapterConfig | StackConfig) -> str:
    """A few words on an adapter: the rank of LoRA, else its kind."""
    if isinstance(config, StackConfig):
        return " + ".join(_described(part) for part in config.adapters.values())
    return f"r={config.r}" if isinstance(config, LoraConfig) else kind_name(config)

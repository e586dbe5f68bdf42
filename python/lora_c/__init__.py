"""LoRA and QLoRA fine-tuning in C, on NumPy arrays.

Everything is loaded when its name is first used: the extension and NumPy, then models, data, training.
"""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False  # type checkers take the name for true; the module typing is not needed otherwise
if TYPE_CHECKING:
    from typing import Any

    from . import ops, reference
    from ._core import (
        SGD,
        Adafactor,
        AdamW,
        AdamW8bit,
        Decoder,
        DecoderAdapters,
        DeviceArray,
        DeviceError,
        DeviceWeight,
        GGMLTensor,
        KVCache,
        Lion,
        LoRALinear,
        Muon,
        NF4Tensor,
        Parameter,
        from_dlpack,
        get_isa,
        get_num_threads,
        get_precision,
        memory_info,
        memory_report,
        reset_peak_memory,
        set_isa,
        set_num_threads,
        set_precision,
        supported_isas,
        to_device,
    )
    from .configs import (
        BottleneckConfig,
        GenerationConfig,
        IA3Config,
        LoraConfig,
        PrefixTuningConfig,
        PromptTuningConfig,
        TrainConfig,
    )
    from .data import Dataset, find_labels, load_dataset
    from .errors import (
        AdapterError,
        CheckpointError,
        ConfigError,
        DataError,
        DivergenceError,
        FitError,
        LoraCError,
        SaveError,
    )
    from .families.labels import Labels
    from .generation.answer import Answer
    from .generation.batch import Batch
    from .model.classification import Classification
    from .model.device_list import Device, devices
    from .model.model import Model
    from .model.opening import load_model
    from .notices import LoraCWarning
    from .training.callbacks import Callback, TrainerState
    from .training.replay import Replay, replay
    from .training.tensorboard_callback import TensorBoardCallback
    from .training.train_result import TrainResult
    from .training.trainer import Trainer
    from .training.wandb_callback import WandbCallback

__version__ = "0.1.0"

# Name to the module that defines it; a module under its own name is the module itself.
_LAZY = {
    "_core": "_core",
    **dict.fromkeys(
        (
            "SGD",
            "Adafactor",
            "AdamW",
            "AdamW8bit",
            "Decoder",
            "DecoderAdapters",
            "DeviceArray",
            "DeviceError",
            "DeviceWeight",
            "GGMLTensor",
            "KVCache",
            "Lion",
            "LoRALinear",
            "Muon",
            "NF4Tensor",
            "Parameter",
            "from_dlpack",
            "get_isa",
            "get_num_threads",
            "get_precision",
            "memory_info",
            "memory_report",
            "reset_peak_memory",
            "set_isa",
            "set_num_threads",
            "set_precision",
            "supported_isas",
            "to_device",
        ),
        "_core",
    ),  # fmt: skip
    **dict.fromkeys(
        (
            "AdapterError",
            "CheckpointError",
            "ConfigError",
            "DataError",
            "DivergenceError",
            "FitError",
            "LoraCError",
            "SaveError",
        ),
        "errors",
    ),
    "Answer": "generation.answer",
    "Batch": "generation.batch",
    "BottleneckConfig": "configs",
    "Callback": "training.callbacks",
    "Classification": "model.classification",
    "Dataset": "data",
    "Device": "model.device_list",
    "devices": "model.device_list",
    "GenerationConfig": "configs",
    "IA3Config": "configs",
    "Labels": "families.labels",
    "LoraCWarning": "notices",
    "LoraConfig": "configs",
    "Replay": "training.replay",
    "replay": "training.replay",
    "Model": "model.model",
    "PrefixTuningConfig": "configs",
    "PromptTuningConfig": "configs",
    "TensorBoardCallback": "training.tensorboard_callback",
    "TrainConfig": "configs",
    "TrainResult": "training.train_result",
    "Trainer": "training.trainer",
    "TrainerState": "training.callbacks",
    "WandbCallback": "training.wandb_callback",
    "find_labels": "data",
    "load_dataset": "data",
    "load_model": "model.opening",
    "ops": "ops",
    "reference": "reference",
}

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "AdapterError",
    "Answer",
    "Batch",
    "BottleneckConfig",
    "Callback",
    "CheckpointError",
    "Classification",
    "ConfigError",
    "DataError",
    "Dataset",
    "Decoder",
    "DecoderAdapters",
    "Device",
    "DeviceArray",
    "DeviceError",
    "DeviceWeight",
    "DivergenceError",
    "FitError",
    "GGMLTensor",
    "GenerationConfig",
    "IA3Config",
    "KVCache",
    "Labels",
    "Lion",
    "LoRALinear",
    "LoraCError",
    "LoraCWarning",
    "LoraConfig",
    "Model",
    "Muon",
    "NF4Tensor",
    "Parameter",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "Replay",
    "SaveError",
    "TensorBoardCallback",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "TrainerState",
    "WandbCallback",
    "__version__",
    "devices",
    "find_labels",
    "from_dlpack",
    "get_isa",
    "get_num_threads",
    "get_precision",
    "load_dataset",
    "load_model",
    "memory_info",
    "memory_report",
    "ops",
    "reference",
    "replay",
    "reset_peak_memory",
    "set_isa",
    "set_num_threads",
    "set_precision",
    "supported_isas",
    "to_device",
]


def __getattr__(name: str) -> Any:
    module_name = _LAZY.get(name)
    if module_name is None:
        from ._moved import module_of_old_attribute

        if (module := module_of_old_attribute(name)) is not None:
            return module
        from .foreign_names import OF_PACKAGE, missing

        raise AttributeError(missing(f"module {__name__!r}", name, OF_PACKAGE), name=name, obj=import_module(__name__))
    module = import_module(f"{__name__}.{module_name}")
    value = module if name == module_name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


class _OldPaths:
    """Asked for modules that nobody else has found: some of this package stood elsewhere, see `_moved`."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith("lora_c."):
            return None
        from ._moved import spec_of

        return spec_of(name)


if not any(getattr(finder, "__qualname__", "") == "_OldPaths" for finder in sys.meta_path):  # reloaded
    sys.meta_path.append(_OldPaths)

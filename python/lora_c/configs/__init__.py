"""Options as typed, validated models. Names are those of PEFT (adapters) and transformers (training, generation).

A wrong name or value raises `ConfigError` with one line that gives the nearest valid name.
"""

from .adapters import ADAPTER_KINDS, MOST_RANK, AdapterConfig, LoraConfig
from .base import FREE_TEXTS, SIZE
from .bottleneck import BottleneckConfig
from .generation import SAMPLING_FIELDS, GenerationConfig
from .ia3 import IA3Config
from .quantization import FOUR_BIT, NF4_BLOCK_SIZES, QUANT_TYPES, FourBit, QuantType
from .stack import StackConfig
from .training import MOST_STEPS, TrainConfig
from .virtual_tokens import PrefixTuningConfig, PromptTuningConfig, VirtualTokensConfig

__all__ = [
    "ADAPTER_KINDS",
    "AdapterConfig",
    "BottleneckConfig",
    "FOUR_BIT",
    "FREE_TEXTS",
    "SIZE",
    "MOST_RANK",
    "MOST_STEPS",
    "NF4_BLOCK_SIZES",
    "QUANT_TYPES",
    "SAMPLING_FIELDS",
    "FourBit",
    "GenerationConfig",
    "IA3Config",
    "LoraConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "QuantType",
    "StackConfig",
    "TrainConfig",
    "VirtualTokensConfig",
]

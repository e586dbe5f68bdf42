"""Options of adapters, with PEFT's names: one class for each kind, and the union of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Config, Probability, Seed
from .bottleneck import BottleneckConfig
from .ia3 import IA3Config
from .peft_constants import PEFT_CONSTANTS, without_constants
from .stack import StackConfig
from .virtual_tokens import PrefixTuningConfig, PromptTuningConfig

if TYPE_CHECKING:
    from typing import TypeAlias

_INITIALISATIONS = ("gaussian", "orthogonal", "pissa", "olora", "loftq")
MOST_RANK = 1 << 20
Rank = Annotated[int, Field(gt=0, le=MOST_RANK)]


class LoraConfig(Config):
    """A LoRA adapter, with PEFT's names.

    Parameters
    ----------
    r : int
        Rank of the update.
    lora_alpha : float
        The update is scaled by `lora_alpha / r`, or by `lora_alpha / sqrt(r)` with `use_rslora`.
    lora_dropout : float
        Probability of zeroing an input of A during training (with DoRA: an input of all that DoRA adds, as in PEFT).
    target_modules : str or list of str, optional
        "all-linear", a list of module names (each matches as a suffix), or a regular expression that must match
        the whole module path, such as ``r".*\\.[0-3]\\.self_attn\\.(q|v)_proj"``. None: PEFT's choice for the family.
    exclude_modules : str or list of str, optional
        Modules left out, matched the same way.
    layers_to_transform, layers_pattern : optional
        Only these layer indices (not together with a regular expression).
    rank_pattern, alpha_pattern : dict
        Other ranks or alphas for some modules; a key matches as a suffix or a regular expression.
    use_dora : bool
        Train a length for each row of W + s B A besides.
    bias : "none", "all" or "lora_only"
        Train biases that the base has: none, all, or those of the adapted modules.
    modules_to_save : list of str, optional
        Modules that are trained whole and saved with the adapter, by the end of their path: "lm_head", "embed_tokens",
        "norm" (every norm).
    trainable_token_indices : list of int or dict, optional
        Rows of the embedding (and of a head tied to it) that are trained.
    init_lora_weights : bool or str
        True: A Kaiming-uniform, B zero. False: both random. "gaussian": A normal with standard deviation 1/r, B zero.
        "orthogonal". "pissa", "pissa_niter_N" and "olora" start from the principal part of W and leave the rest of W as the
        frozen base; "loftq" starts from the error of the quantized base.
    loftq_config : dict
        For "loftq": `loftq_bits` (4) and `loftq_iter` (1).
    fan_in_fan_out : bool
        Written to the file for PEFT, where the base stores its weights as (in, out); the mathematics is the same.
    task_type : str, optional
        "CAUSAL_LM" or "SEQ_CLS"; by default what the model is for. An adapter of a classifier trains its `score` whole, as
        PEFT's does: that is added to modules_to_save.
    seed : int
        Each module draws from its own stream, which depends on the seed and the module's name only.

    Source
    ------
    LoRA, arXiv:2106.09685; rsLoRA, arXiv:2312.03732; DoRA, arXiv:2402.09353; PiSSA, arXiv:2404.02948; OLoRA,
    arXiv:2406.01775; LoftQ, arXiv:2310.08659.
    """

    def __init__(self, **values: Any) -> None:
        constants = PEFT_CONSTANTS | {"peft_type": ("LORA", "this is its class")}
        super().__init__(**without_constants("LoraConfig", values, constants))

    r: Rank = Field(8, description="Rank of the update.")
    lora_alpha: float = Field(8, gt=0, description="The update is scaled by lora_alpha / r.")
    lora_dropout: Probability = Field(0.0, description="Probability of zeroing an input of A.")
    target_modules: str | list[str] | None = Field(
        "all-linear", description="all-linear, names separated by commas, or a regular expression."
    )
    exclude_modules: str | list[str] | None = Field(None, description="Modules left out.")
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r).")
    rank_pattern: dict[str, Rank] = Field({}, description="Other ranks for some modules.")
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="Other alphas for some modules.")
    layers_to_transform: int | list[int] | None = Field(None, description="Only these layers.")
    layers_pattern: str | list[str] | None = Field(None, description="Name of the layer list, as in PEFT.")
    use_dora: bool = Field(False, description="Train row lengths besides (DoRA).")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Biases to train.")
    modules_to_save: list[str] | None = Field(None, description="Modules trained whole, such as lm_head.")
    trainable_token_indices: list[int] | dict[str, list[int]] | None = Field(None, description="Embedding rows to train.")
    init_lora_weights: bool | str = Field(
        True, description="true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora or loftq."
    )
    loftq_config: dict[str, int] = Field({}, description="loftq: loftq_iter.")
    fan_in_fan_out: bool = Field(False, description="Written for PEFT; the base decides.")
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] | None = Field(
        None, description="SEQ_CLS: a classifier, whose data are texts with labels; default: what the model is."
    )
    seed: Seed = Field(0, description="Seed of the values that it begins with.")

    @field_validator("modules_to_save", "trainable_token_indices", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, int)) else value

    @field_validator("task_type", mode="before")
    @classmethod
    def _member_is_text(cls, value: Any) -> Any:
        return getattr(value, "value", value)  # PEFT's own constants are members of enumerations

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _known_initialisation(cls, value: Any) -> Any:
        text = str(value).lower()
        if text in ("true", "false"):
            return text == "true"
        if text not in _INITIALISATIONS and not re.fullmatch(r"pissa_niter_[1-9]\d*", text):
            raise ValueError(f"expected true, false, {', '.join(_INITIALISATIONS)} or pissa_niter_N, got {value!r}")
        return text

    @field_validator("loftq_config")
    @classmethod
    def _four_bits_only(cls, value: dict[str, int]) -> dict[str, int]:
        if set(value) - {"loftq_bits", "loftq_iter"} or value.get("loftq_bits", 4) != 4 or value.get("loftq_iter", 1) < 1:
            raise ValueError(f"expected loftq_bits 4 and loftq_iter of 1 or more, got {value!r}")
        return value

    @model_validator(mode="after")
    def _layers_need_names(self) -> LoraConfig:
        pattern = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        if pattern and self.layers_to_transform is not None:
            raise ValueError(
                "layers_to_transform: expected none with a regular expression in target_modules; "
                "put the layer numbers into the expression"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern: expected layers_to_transform beside it, got none")
        return self


# Every kind of adapter by PEFT's name of it (`peft_type`), and the union of their classes.
ADAPTER_KINDS: dict[str, type[AdapterConfig]] = {
    "LORA": LoraConfig,
    "IA3": IA3Config,
    "BOTTLENECK": BottleneckConfig,
    "PROMPT_TUNING": PromptTuningConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
}
AdapterConfig: TypeAlias = LoraConfig | IA3Config | BottleneckConfig | PromptTuningConfig | PrefixTuningConfig


def kind_name(config: object) -> str:
    """Return PEFT's name of the kind that a configuration is of; of a stack the names of all of its kinds."""
    if isinstance(config, StackConfig):
        return ",".join(kind_name(part) for part in config.adapters.values())
    return next(name for name, kind in ADAPTER_KINDS.items() if isinstance(config, kind))


def parts_of(config: Any) -> list[Any]:
    """Return the configurations of the adapters that one stands for: its own, or those of a stack; none for None."""
    return list(config.adapters.values()) if isinstance(config, StackConfig) else [] if config is None else [config]

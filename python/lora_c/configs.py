"""Options as typed, validated models. Names are those of PEFT (adapters) and transformers (training, generation).

A wrong name or value raises `ConfigError` with one line that gives the nearest valid name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .config_help import ConfigType, describe_fields
from .errors import ConfigError, nearest
from .frozen_values import frozen, thawed
from .model_names import expand
from .other_names import meant

if TYPE_CHECKING:
    from typing_extensions import Self

_INITIALISATIONS = ("gaussian", "orthogonal", "pissa", "olora", "loftq")
FREE_TEXTS = "free texts"  # marks a list whose items are any texts, so that no flag cuts them at commas
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # beyond it NumPy makes a key of floats
MOST_RANK = 1 << 20
Rank = Annotated[int, Field(gt=0, le=MOST_RANK)]
MOST_STEPS = 10**12

NF4_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def _nearest_option(model: type[BaseModel], name: str) -> str:
    found = meant(name, model.model_fields)
    return f", did you mean {found!r}?" if found else nearest(name, model.model_fields)


def _refusal(model: type[BaseModel], error: ValidationError) -> ConfigError:
    """All that is wrong in one line, and option by option."""
    problems = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append((name, f"unknown option{_nearest_option(model, name)}"))
            continue
        message = item["msg"].removeprefix("Value error, ")
        message = message.replace("Input should be ", "expected ")
        message = message[:1].lower() + message[1:]
        if not name:  # of the options together: the message begins with the one that it is about
            name, _, message = message.partition(": ")
        shown = f", got {repr(item['input'])[:80]}" if item["type"] != "value_error" else ""
        problems.append((name, message + shown))
    problems = list(dict.fromkeys(problems))
    return ConfigError(f"{model.__name__}: " + "; ".join(f"{name}: {text}" for name, text in problems), problems)


def _plain(value: Any) -> Any:
    """NumPy's scalars, tuples and paths as what they stand for; nothing else is converted: 8.9 is no rank, True no number."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {_plain(key): _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


_FROZEN = "held by a model or a trainer"  # a key beside the values of a configuration that nobody may change any more


class _Config(BaseModel, metaclass=ConfigType):
    """Base: unknown names and values of another type are refused, and every refusal is one line."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        describe_fields(cls)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**{name: _plain(value) for name, value in values.items()})
        except ValidationError as error:
            raise _refusal(type(self), error) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).model_fields:
            raise ConfigError(f"{type(self).__name__}: {name}: unknown option{_nearest_option(type(self), name)}")
        if _FROZEN in self.__dict__:
            raise ConfigError(
                f"{type(self).__name__}: {name}: expected a configuration of your own, got one {_FROZEN}, where a change "
                "would do nothing; change a copy (config.model_copy()) before you give it away"
            )
        try:
            super().__setattr__(name, _plain(value))
        except ValidationError as error:
            raise _refusal(type(self), error) from None

    def frozen_copy(self) -> Self:
        """Return a copy that nobody can change, for what is built with it."""
        copy = self.model_copy(deep=True)
        copy.__dict__.update({name: frozen(value) for name, value in copy.__dict__.items()})
        copy.__dict__[_FROZEN] = True
        return copy

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy that can be changed, with some values replaced."""
        copy = super().model_copy(update=update, deep=deep)
        if copy.__dict__.pop(_FROZEN, False):
            copy.__dict__.update({name: thawed(value) for name, value in copy.__dict__.items()})
        return copy


def _without_peft_constants(values: dict[str, Any]) -> dict[str, Any]:
    """Options of PEFT that have one value here; another one is refused."""
    rest = dict(values)
    for name, (expected, why) in _PEFT_CONSTANTS.items():
        value = rest.pop(name, expected)
        value = getattr(value, "value", value)  # PEFT's own constants are members of enumerations
        if value != expected and value is not None:
            raise ConfigError(f"LoraConfig: {name}: expected {expected!r}, got {value!r}; {why}")
    return rest


_PEFT_CONSTANTS: dict[str, tuple[Any, str]] = {
    "task_type": ("CAUSAL_LM", "the models here write text"),
    "peft_type": ("LORA", "other methods are not supported"),
    "inference_mode": (False, "a new adapter is trained; load_adapter(path, is_trainable=False) loads a frozen one"),
}


class LoraConfig(_Config):
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
        frozen base; "loftq" starts from the error of the NF4 base.
    loftq_config : dict
        For "loftq": `loftq_bits` (4) and `loftq_iter` (1).
    fan_in_fan_out : bool
        Written to the file for PEFT, where the base stores its weights as (in, out); the mathematics is the same.
    seed : int
        Each module draws from its own stream, which depends on the seed and the module's name only.

    Source: LoRA, arXiv:2106.09685; rsLoRA, arXiv:2312.03732; DoRA, arXiv:2402.09353; PiSSA, arXiv:2404.02948; OLoRA,
    arXiv:2406.01775; LoftQ, arXiv:2310.08659.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__(**_without_peft_constants(values))

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
    seed: Seed = Field(0, description="Seed of the values that it begins with.")

    @field_validator("modules_to_save", "trainable_token_indices", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, int)) else value

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
    def _nf4_only(cls, value: dict[str, int]) -> dict[str, int]:
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


FreeTexts = Annotated[list[str], FREE_TEXTS]
SAMPLING_FIELDS = {"temperature", "top_k", "top_p", "min_p", "typical_p"}


class GenerationConfig(_Config):
    """How text is generated, with transformers' names.

    Greedy unless `do_sample` is true, or `do_sample` is left alone and one of `temperature`, `top_k`, `top_p`, `min_p`,
    `typical_p` is given. A temperature of 0 means greedy. Penalties, forbidden and forced tokens hold for both.
    """

    max_new_tokens: int = Field(256, gt=0, description="Most tokens to write.")
    do_sample: bool | None = Field(
        None, description="Draw tokens at random; default: when temperature, top_k, top_p, min_p or typical_p is given."
    )
    temperature: float = Field(1.0, ge=0.0, description="Divides the logits; 0 is greedy.")
    top_k: int = Field(0, ge=0, description="Draw among the k most probable tokens; 0: all.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Draw among the most probable tokens that reach this share.")
    min_p: float = Field(0.0, ge=0.0, le=1.0, description="Leave out tokens below this share of the most probable one's.")
    typical_p: float = Field(1.0, gt=0.0, le=1.0, description="Draw among the tokens of usual information, up to this share.")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Seed of the random draws; by default another one each time, which is told."
    )
    num_return_sequences: int = Field(1, gt=0, description="Answers to draw for each prompt.")
    repetition_penalty: float = Field(1.0, gt=0.0, le=1e30, description="Makes earlier tokens less likely where above 1.")
    no_repeat_ngram_size: int = Field(0, ge=0, description="No run of so many tokens comes twice; 0: any may.")
    bad_words: FreeTexts = Field(
        [], description="Words that are never written with their usual tokens; inside of other words the letters may come."
    )
    bad_words_ids: list[list[int]] = Field([], description="Sequences of token ids that are never written.")
    suppress_tokens: list[int] = Field([], description="Token ids that are never written.")
    begin_suppress_tokens: list[int] = Field([], description="Token ids that no answer begins with.")
    min_new_tokens: int = Field(0, ge=0, description="Fewest tokens to write: no end before.")
    forced_bos_token_id: int | None = Field(None, ge=0, description="Token after a prompt of one token.")
    forced_eos_token_id: int | list[int] | None = Field(None, description="Token that is written last where no end comes.")
    stop_strings: FreeTexts = Field([], description="Stop when this text appears; special tokens count as their text.")
    ignore_eos: bool = Field(False, description="Go on after the end token.")
    precision: Literal["exact", "fast"] | None = Field(
        None,
        description="exact: float32 products; fast: operands in bfloat16 or int16 where the CPU is faster with them. "
        "Default: what the environment variable LORA_C_PRECISION says, else fast.",
    )

    @model_validator(mode="after")
    def _fewest_is_not_more_than_most(self) -> GenerationConfig:
        if "max_new_tokens" in self.model_fields_set and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens: expected at most max_new_tokens ({self.max_new_tokens}), got {self.min_new_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _forced_tokens_may_be_written(self) -> GenerationConfig:
        suppressed = set(self.suppress_tokens)
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            forced = value if isinstance(value, list) else [] if value is None else [value]
            if forced and suppressed.issuperset(forced):
                raise ValueError(f"{name}: expected a token that may be written, got {value}, which is in suppress_tokens")
        return self

    @property
    def sampling(self) -> bool:
        """Whether tokens are drawn at random."""
        if self.temperature == 0.0:
            return False
        if self.do_sample is not None:
            return self.do_sample
        return bool(self.model_fields_set & SAMPLING_FIELDS)

    @field_validator("stop_strings", "bad_words", mode="before")
    @classmethod
    def _one_text_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class TrainConfig(_Config):
    """A training run, with transformers' names.

    `per_device_train_batch_size` counts examples per micro-batch. `max_steps` > 0 overrides `num_train_epochs`;
    `warmup_steps` > 0 overrides `warmup_ratio`. In Python the model decides `method`, `block_size` and `double_quant` (others
    are refused), adapters have `LoraConfig.seed`, and `max_seq_length` cuts where it is given; see docs/PYTHON.md.
    """

    output_dir: str = Field(
        "lora-c-output", min_length=1, description="Folder for metrics and checkpoints; on the command line for all of a run."
    )
    method: Literal["qlora", "lora", "head", "full"] = Field(
        "qlora", description="qlora: 4-bit frozen base; lora: base as it is; head: only lm_head; full: every weight."
    )
    num_train_epochs: float = Field(1.0, gt=0.0, le=1e6, description="Passes over the data.")
    max_steps: int = Field(-1, le=MOST_STEPS, description="Optimizer steps; overrides the epochs when > 0.")
    learning_rate: float = Field(2e-4, gt=0.0, description="Peak learning rate.")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field("linear", description="Schedule after warm-up.")
    warmup_ratio: float = Field(0.0, ge=0.0, le=1.0, description="Share of the steps that warm up.")
    warmup_steps: int = Field(0, ge=0, description="Warm-up steps; overrides the ratio when > 0.")
    per_device_train_batch_size: int = Field(4, gt=0, description="Sequences per micro-batch, packed without padding.")
    gradient_accumulation_steps: int = Field(1, gt=0, description="Micro-batches per optimizer step.")
    max_seq_length: int = Field(1024, gt=1, description="Longest sequence; the first tokens of a longer one are kept.")
    max_grad_norm: float = Field(1.0, ge=0.0, description="Clip the global gradient norm; 0 turns it off.")
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled weight decay of matrices.")
    adam_beta1: Probability = Field(0.9, description="AdamW's first decay rate.")
    adam_beta2: Probability = Field(0.999, description="AdamW's second decay rate.")
    adam_epsilon: float = Field(1e-8, gt=0.0, description="AdamW's epsilon.")
    seed: Seed = Field(
        0, description="Seed of data order and split; of a run on the command line also of adapter weights and dropout."
    )
    recompute: Literal["none", "layer", "auto"] = Field(
        "auto",
        description="layer: keep one row per layer and compute the rest again in backward; same bits, less memory, a third "
        "slower. auto: layer where the forecast of none exceeds memory_limit.",
    )
    activation_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: keep activations for backward in half the memory; same loss, rounded gradients."
    )
    memory_limit: float | None = Field(None, gt=0.0, description="GiB for recompute=auto; by default 80 % of what is free.")
    precision: Literal["exact", "fast"] = Field(
        "fast",
        description="exact: float32 products; fast: operands in bfloat16 or int16 where the CPU is faster with them.",
    )
    val_fraction: Probability = Field(0.0, description="Share of the data held out when no evaluation data is given.")
    eval_steps: int = Field(0, ge=0, description="Evaluate every so many steps; 0: only at the end.")
    eval_batch_tokens: int = Field(2048, gt=0, description="Tokens per batch in evaluation.")
    save_steps: float = Field(
        0.1,
        ge=0,
        description="Write a resumable checkpoint every so many steps; below 1: every such share of the run, where that takes "
        "little of its time; 0: only at the end.",
    )
    save_total_limit: int | None = Field(2, gt=0, description="Keep only so many checkpoints, the last one among them.")
    logging_steps: int = Field(1, gt=0, description="Write metrics.jsonl every so many steps.")
    double_quant: bool = Field(True, description="qlora: quantize the block scales too.")
    block_size: int = Field(64, description="qlora: weights per block scale.")

    @model_validator(mode="after")
    def _sizes(self) -> TrainConfig:
        if self.block_size not in NF4_BLOCK_SIZES:
            sizes = ", ".join(map(str, NF4_BLOCK_SIZES))
            raise ValueError(f"block_size: expected one of {sizes}, got {self.block_size}")
        if self.save_steps > 1 and self.save_steps != int(self.save_steps):
            raise ValueError(f"save_steps: expected a whole number, or a share below 1, got {self.save_steps:g}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps: expected a positive number, or -1 for num_train_epochs, got {self.max_steps}")
        return self

    @field_validator("output_dir")
    @classmethod
    def _home_folder(cls, value: str) -> str:
        return expand(value, "output_dir")

    @property
    def quantize(self) -> Literal["nf4"] | None:
        """The base quantization that `method` asks for."""
        return "nf4" if self.method == "qlora" else None

"""Options of a training run, with transformers' names."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ..files.paths import expand
from .base import Config, OptionalGiB, Probability, Seed
from .optimizers import OTHER_OPTIM_NAMES, OptimName, check_optim, split_optim_args
from .quantization import NF4_BLOCK_SIZES, QuantType
from .schedules import check_schedule

MOST_STEPS = 10**12
PRECISIONS = ("exact", "fast", "int8")  # from the most exact one on
Recompute = Literal["none", "attention", "layer"]  # from the most memory and least time on
RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)
ActivationDtype = Literal["float32", "bfloat16", "int8"]


class TrainConfig(Config):
    """A training run, with transformers' names.

    `per_device_train_batch_size` counts examples per micro-batch. `max_steps` > 0 overrides `num_train_epochs`;
    `warmup_steps` > 0 overrides `warmup_ratio`. In Python the model decides `method`, `quant_type`, `block_size` and
    `double_quant` (others are refused), adapters have `LoraConfig.seed`, and `max_seq_length` cuts where it is given; see
    docs/PYTHON.md.
    """

    output_dir: str = Field(
        "lora-c-output", min_length=1, description="Folder for metrics and checkpoints; on the command line for all of a run."
    )
    method: Literal["qlora", "lora", "head", "full"] = Field(
        "qlora", description="qlora: quantized frozen base; lora: base as it is; head: only lm_head; full: every weight."
    )
    num_train_epochs: float = Field(1.0, gt=0.0, le=1e6, description="Passes over the data.")
    max_steps: int = Field(-1, le=MOST_STEPS, description="Optimizer steps; overrides the epochs when > 0.")
    learning_rate: float = Field(2e-4, gt=0.0, description="Peak learning rate.")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "cosine_with_min_lr", "polynomial",
        "inverse_sqrt", "warmup_stable_decay",
    ] = Field("linear", description="Schedule after warm-up.")  # fmt: skip
    lr_scheduler_kwargs: dict[str, float | str] = Field({}, description="Options of the schedule, such as num_cycles.")
    warmup_ratio: float = Field(0.0, ge=0.0, le=1.0, description="Share of the steps that warm up.")
    warmup_steps: int = Field(0, ge=0, description="Warm-up steps; overrides the ratio when > 0.")
    per_device_train_batch_size: int = Field(4, gt=0, description="Sequences per micro-batch, packed without padding.")
    gradient_accumulation_steps: int = Field(1, gt=0, description="Micro-batches per optimizer step.")
    max_seq_length: int = Field(1024, gt=1, description="Longest sequence; the first tokens of a longer one are kept.")
    max_grad_norm: float = Field(1.0, ge=0.0, description="Clip the global gradient norm; 0 turns it off.")
    optim: OptimName = Field("adamw_torch", description="Optimizer; the paged ones keep their state in a file.")
    optim_args: dict[str, bool | int | float | str] = Field({}, description="Options of the optimizer, such as momentum.")
    paged_dir: str | None = Field(
        None,
        min_length=1,
        description="Folder for the state of a paged optimizer and for activation_offload; by default the output folder.",
    )
    weight_decay: float = Field(0.0, ge=0.0, description="Weight decay of matrices; decoupled but with sgd.")
    adam_beta1: Probability = Field(0.9, description="AdamW's first decay rate.")
    adam_beta2: Probability = Field(0.999, description="AdamW's second decay rate.")
    adam_epsilon: float = Field(1e-8, gt=0.0, description="AdamW's epsilon.")
    loraplus_lr_ratio: float | None = Field(
        None, gt=0.0, le=1e6, description="LoRA+: the learning rate of B matrices is so many times that of A."
    )
    loraplus_lr_embedding: float = Field(1e-6, ge=0.0, description="LoRA+: learning rate of adapters of the embedding.")
    neftune_noise_alpha: float | None = Field(
        None,
        ge=0.0,
        le=1e6,
        description="NEFTune: noise on embedded tokens, this over the root of a sequence's length and width.",
    )
    seed: Seed = Field(
        0, description="Seed of data order and split; of a run on the command line also of adapter weights and dropout."
    )
    recompute: Literal["none", "attention", "layer", "auto"] = Field(
        "auto",
        description="layer: keep one row per layer, compute the rest again; same bits, less memory, a third slower. "
        "attention: q, k, v alone, 5 to 10 %. auto: the first one within memory_limit.",
    )
    activation_dtype: ActivationDtype = Field(
        "float32",
        description="bfloat16: keep activations for backward in half the memory; int8 (CPUs): in 0.4 of it; "
        "same loss, rounded gradients; with recompute=layer bfloat16 saves nothing.",
    )
    activation_offload: bool = Field(
        False,
        description="Keep activations for backward in the host's memory, on the CPU in a file in paged_dir; same bits.",
    )
    memory_limit: OptionalGiB = Field(
        None, description="GiB (or 12GB) for recompute=auto; by default 80 % of what is free, with float32 activations."
    )
    precision: Literal["exact", "fast", "int8"] = Field(
        "fast",
        description="exact: float32 products; fast: operands in bfloat16 or int16 where the CPU is faster with them; "
        "int8: like fast, but products of base weights on 8 bits (CPUs), whatever they are stored in.",
    )
    val_fraction: Probability = Field(0.0, description="Share of the data held out when no evaluation data is given.")
    eval_steps: int = Field(0, ge=0, description="Evaluate every so many steps; 0: only at the end.")
    eval_batch_tokens: int = Field(2048, gt=0, description="Tokens per batch in evaluation.")
    load_best_model_at_end: bool = Field(
        False, description="End with the parameters of the best evaluation; its checkpoint is kept."
    )
    metric_for_best_model: str | None = Field(
        None, min_length=1, description="What the best evaluation is judged by: loss, or another of its metrics."
    )
    greater_is_better: bool | None = Field(None, description="Whether more of that is better; by default of all but losses.")
    early_stopping_patience: int = Field(
        0, ge=0, description="End after so many evaluations in a row that are no better than the best; 0: never."
    )
    early_stopping_threshold: float = Field(0.0, ge=0.0, description="By how much an evaluation must be better to count.")
    nonfinite_steps: Literal["stop", "skip"] = Field(
        "stop", description="A step whose loss or gradient is not finite ends the run, or changes nothing."
    )
    skip_grad_norm: float = Field(0.0, ge=0.0, description="Leave out steps whose gradient norm is larger; 0: none.")
    max_skipped_steps: int = Field(10, ge=0, description="End the run when more steps than this were left out.")
    save_steps: float = Field(
        0.1,
        ge=0,
        description="Write a resumable checkpoint every so many steps; below 1: every such share of the run, where that takes "
        "little of its time; 0: only at the end.",
    )
    save_total_limit: int | None = Field(2, gt=0, description="Keep only so many checkpoints, the last one among them.")
    logging_steps: int = Field(1, gt=0, description="Write metrics.jsonl every so many steps.")
    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="Programs that draw the run while it goes on: tensorboard, wandb; each needs its package."
    )
    quant_type: QuantType = Field("nf4", description="qlora: type of the base's matrices; q8_0 has 8 bits, the others 4.")
    double_quant: bool = Field(True, description="qlora: quantize the block scales too.")
    block_size: int = Field(64, description="qlora: weights per block scale.")

    @model_validator(mode="after")
    def _sizes(self) -> TrainConfig:
        if self.block_size not in NF4_BLOCK_SIZES:
            sizes = ", ".join(map(str, NF4_BLOCK_SIZES))
            raise ValueError(f"block_size: expected one of {sizes}, got {self.block_size}")
        if self.save_steps > 1 and self.save_steps != int(self.save_steps):
            raise ValueError(f"save_steps: expected a whole number, or a share below 1, got {self.save_steps:g}")
        check_schedule(self.lr_scheduler_type, self.lr_scheduler_kwargs, self.learning_rate)
        self.__dict__["optim_args"] = check_optim(self.optim, self.optim_args)  # with their types
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps: expected a positive number, or -1 for num_train_epochs, got {self.max_steps}")
        return self

    @property
    def wants_best(self) -> bool:
        """Whether the run looks for its best evaluation."""
        return self.load_best_model_at_end or self.early_stopping_patience > 0

    @field_validator("optim_args", mode="before")
    @classmethod
    def _optim_args(cls, value: Any) -> Any:
        return split_optim_args(value)

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_program_is_a_list(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)):
            return names
        return [] if list(names) == ["none"] else list(dict.fromkeys(names))  # transformers' word

    @field_validator("optim")
    @classmethod
    def _one_name(cls, value: str) -> str:
        return OTHER_OPTIM_NAMES.get(value, value)

    @field_validator("output_dir")
    @classmethod
    def _home_folder(cls, value: str) -> str:
        return expand(value, "output_dir")

    @property
    def quantize(self) -> QuantType | None:
        """The base quantization that `method` asks for."""
        return self.quant_type if self.method == "qlora" else None

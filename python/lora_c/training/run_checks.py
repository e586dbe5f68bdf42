"""Options that a training run would ignore are refused before it starts: one table of rules, for Python and the command line.

A rule speaks where its option was given, whatever the value, unless the value is the one that turns the option off. The same
table says which options `config.yaml` leaves out, because the next run would refuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._core import GGMLTensor, NF4Tensor, Parameter
from ..configs import ADAPTER_KINDS, FOUR_BIT, AdapterConfig, LoraConfig, StackConfig, TrainConfig
from ..configs.adapters import kind_name, parts_of
from ..configs.optimizers import check_optim
from ..errors import ConfigError
from ..weights.quantization import quantization_of

if TYPE_CHECKING:
    from ..model.model import Model

_OFF: dict[str, Any] = {
    "eval_steps": 0, "val_fraction": 0.0, "warmup_steps": 0, "memory_limit": None, "loftq_config": {},
    "load_best_model_at_end": False, "early_stopping_patience": 0, "early_stopping_threshold": 0.0,
}  # fmt: skip
_QUANTIZED_HERE = (
    "method qlora and a base that is quantized so while it is loaded, got weights that stay as they are (q8_0 has no "
    "such detail); leave it out"
)
_HELD_OUT = "held-out data beside it, got none; give eval_data or val_fraction, or leave it out"


@dataclass(frozen=True)
class RunOptions:
    """What is known of a run: `model`, `has_eval_data` and `total_steps` are None before they are."""

    config: TrainConfig
    lora: AdapterConfig | StackConfig | None = None
    model: Model | None = None
    has_eval_data: bool | None = None
    total_steps: int | None = None
    adapter: str | None = None  # that the run goes on from


@dataclass(frozen=True)
class Rule:
    """`options` do nothing in a run for which `is_ignored` holds; `expected` is what they need, and the way out."""

    options: Iterable[str]
    is_ignored: Callable[[RunOptions], bool]
    expected: str


def _trains_other(run: RunOptions) -> bool:
    """Whether the model was made for another method than the one that is named."""
    if run.model is None:
        return False
    trained = {name for name, weight in run.model.weights.items() if isinstance(weight, Parameter)}
    fits = {"full": len(trained) == len(run.model.weights), "head": trained == {"lm_head"}}
    has_adapter = run.model.adapter is not None
    if run.config.method == "qlora" and not any(isinstance(w, (NF4Tensor, GGMLTensor)) for w in run.model.weights.values()):
        return True
    return has_adapter if fits.get(run.config.method) else run.config.method in fits or not has_adapter


def _other_quantization(run: RunOptions, option: str) -> bool:
    """Whether the base is not quantized as the option says. Details are of the 4-bit types only."""
    is_detail = option != "quant_type"
    if run.config.method != "qlora" or (is_detail and run.config.quant_type not in FOUR_BIT):
        return True
    if run.model is None:
        return False
    kinds = [kind for weight in run.model.weights.values() if (kind := quantization_of(weight)) is not None]
    if not kinds or (is_detail and not all(kind.is_4bit for kind in kinds)):
        return True
    return any(getattr(kind, option) != getattr(run.config, option) for kind in kinds)


# Of adapters of every kind, and the kind itself.
_OF_THE_RUN = ("seed", "task_type")
ADAPTER_OPTIONS = list(
    dict.fromkeys(["peft_type", *(n for kind in ADAPTER_KINDS.values() for n in kind.model_fields if n not in _OF_THE_RUN)])
)
RULES = [
    Rule(
        ADAPTER_OPTIONS,
        lambda run: run.config.method in ("full", "head"),
        "method lora or qlora, got one without an adapter; leave it out, or choose another method",
    ),
    Rule(
        ADAPTER_OPTIONS,
        lambda run: run.adapter is not None,
        "no adapter to go on from, whose own options hold, got one; leave it out",
    ),
    Rule(
        ["adapter"],
        lambda run: run.adapter is not None and run.config.method in ("full", "head"),
        "method lora or qlora, got one without an adapter; leave it out, or choose another method",
    ),
    Rule(
        ["loftq_config"],
        lambda run: all(getattr(part, "init_lora_weights", "") != "loftq" for part in parts_of(run.lora)),
        "init_lora_weights loftq, got another; leave it out",
    ),
    Rule(
        ["method"],
        _trains_other,
        "a model that was made for it, got another; load it with trainable='full' or 'head', call add_adapter for lora "
        "and qlora, and quantize='nf4' for qlora",
    ),
    Rule(["quant_type"], lambda run: _other_quantization(run, "quant_type"), _QUANTIZED_HERE),
    Rule(["block_size"], lambda run: _other_quantization(run, "block_size"), _QUANTIZED_HERE),
    Rule(["double_quant"], lambda run: _other_quantization(run, "double_quant"), _QUANTIZED_HERE),
    Rule(["eval_steps"], lambda run: run.has_eval_data is False, _HELD_OUT),
    Rule(["load_best_model_at_end"], lambda run: run.has_eval_data is False, _HELD_OUT),
    Rule(["early_stopping_patience"], lambda run: run.has_eval_data is False, _HELD_OUT),
    Rule(
        ["early_stopping_patience"],
        lambda run: run.config.eval_steps == 0,
        "eval_steps beside it, got one evaluation at the end; give eval_steps, or leave it out",
    ),
    Rule(
        ["metric_for_best_model", "greater_is_better"],
        lambda run: not run.config.wants_best,
        "load_best_model_at_end or early_stopping_patience beside it, got neither; leave it out",
    ),
    Rule(
        ["early_stopping_threshold"],
        lambda run: run.config.early_stopping_patience == 0,
        "early_stopping_patience beside it, got none; leave it out",
    ),
    Rule(
        ["max_skipped_steps"],
        lambda run: run.config.nonfinite_steps == "stop" and run.config.skip_grad_norm == 0,
        "nonfinite_steps skip or skip_grad_norm beside it, got neither; leave it out",
    ),
    Rule(["eval_batch_tokens"], lambda run: run.has_eval_data is False, _HELD_OUT),
    Rule(
        ["warmup_steps"],
        lambda run: run.total_steps is not None and run.config.warmup_steps > run.total_steps,
        "no more than the steps of the run, got more; the learning rate would never reach its peak",
    ),
    Rule(
        ["learning_rate"],
        lambda run: bool(check_optim(run.config.optim, run.config.optim_args).get("relative_step")),
        "an optimizer without a rate of its own, got adafactor with relative_step; leave one of them out",
    ),
    Rule(
        ["adam_beta1", "adam_beta2", "adam_epsilon"],
        lambda run: run.config.optim in ("sgd", "adafactor"),
        "an optimizer that has them, got another; leave it out, optim_args has the options of others",
    ),
    Rule(
        ["loraplus_lr_ratio"],
        lambda run: run.model is not None and not run.model.adapters,
        "an adapter of LoRA, whose B it is for, got none; leave it out",
    ),
    Rule(
        ["paged_dir"],
        lambda run: not run.config.optim.startswith("paged_") and not run.config.activation_offload,
        "optim paged_adamw_32bit or paged_adamw_8bit, or activation_offload beside it, got neither; leave it out",
    ),
    Rule(["adam_epsilon"], lambda run: run.config.optim == "lion", "an optimizer that has one, got lion; leave it out"),
    Rule(
        ["memory_limit"],
        lambda run: run.config.recompute != "auto",
        "recompute auto, which it decides, got another; leave one of them out",
    ),
]


def ignored_options(run: RunOptions) -> list[tuple[str, Rule]]:
    """Options without effect in this run, given or not, in the order of the table."""
    return [(name, rule) for rule in RULES if rule.is_ignored(run) for name in rule.options]


def check_run(run: RunOptions) -> None:
    """Refuse an option that was given and would be ignored.

    Raises
    ------
    ConfigError
        Naming the option, and what it needs.
    """
    for name, rule in ignored_options(run):
        found = given(run, name)
        if found and not (name in _OFF and found[0] == _OFF[name]):
            raise ConfigError(f"{name}: expected {rule.expected} ({name}: {found[0]})")


def given(run: RunOptions, name: str) -> list[Any]:
    """The value of an option in a list; an empty one where it was left alone."""
    if name == "adapter":
        return [run.adapter] if run.adapter is not None else []
    if name == "peft_type":  # given where it is not LoRA, which stands for no choice
        return [kind_name(run.lora)] if run.lora is not None and not isinstance(run.lora, LoraConfig) else []
    configs = [config for config in (run.config, *parts_of(run.lora)) if name in config.model_fields_set]
    return [getattr(config, name) for config in configs][:1]

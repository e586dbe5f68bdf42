"""From what the rows share, and what one of them changes, to the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..adapters.targets import find_targets
from ..configs import ADAPTER_KINDS, AdapterConfig, LoraConfig, StackConfig, TrainConfig
from ..configs.adapters import MOST_RANK
from ..errors import AdapterError
from .rows import ATTENTION, QV, Row

if TYPE_CHECKING:
    from ..families.architectures import Architecture

_OF_QUANTIZED = ("quant_type", "block_size", "double_quant")
_OF_ADAPTERS = ("loraplus_lr_ratio", "loraplus_lr_embedding")


def kinds_of(row: Row) -> list[str]:
    """The kinds of adapters that a row trains; none for the head or all weights."""
    return list(row.settings.get("peft_type", ["LORA"])) if row.settings.get("method") in ("lora", "qlora") else []


def run_values(row: Row, shared: Mapping[str, Any], seed: int, folder: str) -> dict[str, Any]:
    """The values of the row's `TrainConfig`.

    Parameters
    ----------
    shared : mapping
        Fields of TrainConfig that were given for all rows; what means nothing for the row's method is passed over.
    """
    own = {name: value for name, value in row.settings.items() if name in TrainConfig.model_fields}
    method = own["method"]
    idle = (() if method == "qlora" else _OF_QUANTIZED) + (() if method in ("lora", "qlora") else _OF_ADAPTERS)
    if own.get("quant_type") == "q8_0":
        idle = _OF_QUANTIZED
    values = {name: value for name, value in shared.items() if name not in idle} | own
    rate = values.get("learning_rate", TrainConfig.model_fields["learning_rate"].default)
    return values | {"learning_rate": rate * row.rate, "seed": seed, "output_dir": folder}


def adapter_of(
    row: Row, shared: Mapping[str, Any], seed: int, architecture: Architecture
) -> AdapterConfig | StackConfig | None:
    """The row's adapter, of several kinds a stack; None where it trains the base itself.

    Parameters
    ----------
    shared : mapping
        Options of adapters that were given for all rows; each goes to the kinds that have it.
    """
    own = {name: value for name, value in row.settings.items() if name not in (*TrainConfig.model_fields, "peft_type")}
    made: dict[str, AdapterConfig] = {}
    for kind in kinds_of(row):
        cls = ADAPTER_KINDS[kind]
        values = {name: value for name, value in {**shared, **own}.items() if name in cls.model_fields} | {"seed": seed}
        config = cls(**values)
        if isinstance(config, LoraConfig):
            config = _ranked(config, row, LoraConfig(**_of_lora(shared)), architecture)
        made[kind.lower()] = config
    if not made:
        return None
    return next(iter(made.values())) if len(made) == 1 else StackConfig(adapters=made)


def _of_lora(shared: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shared.items() if name in LoraConfig.model_fields}


def _ranked(config: LoraConfig, row: Row, base: LoraConfig, architecture: Architecture) -> LoraConfig:
    """With the rank of the budget, and with alpha by rank as the others have it."""
    r = rank_of_budget(config, base, architecture) if row.is_budgeted else config.r
    alpha = config.lora_alpha if "lora_alpha" in row.settings else base.lora_alpha / base.r * r
    return config.model_copy(update={"r": r, "lora_alpha": alpha})


def rank_of_budget(config: LoraConfig, base: LoraConfig, architecture: Architecture) -> int:
    """The rank with which the adapter trains about as many parameters as q and v do with the rank of `base`, 1 or more.

    Where a model stores them in one matrix with others, that and the others of attention stand for them.

    Raises
    ------
    AdapterError
        The model has no matrices of these names.
    """
    try:
        shared = _parameters_by_rank(QV, architecture)
    except AdapterError:
        shared = _parameters_by_rank(ATTENTION, architecture)
    budget = base.r * shared
    per_rank = _parameters_by_rank(config.target_modules, architecture)
    return min(MOST_RANK, max(1, round(budget / per_rank)))


def _parameters_by_rank(names: Any, architecture: Architecture) -> int:
    """Parameters that LoRA of rank 1 trains: (in + out) of each matrix."""
    return sum(sum(target.spec.shape) for target in find_targets(LoraConfig(r=1, target_modules=names), architecture))

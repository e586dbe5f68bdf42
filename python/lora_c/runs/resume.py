"""Whether a resumed run is still the run that wrote the checkpoint.

What changes the result of a run is refused by name, with the old and the new value; `allow_changes` permits it. The table of
all fields is docs/RESUME.md; a field of TrainConfig or LoraConfig that is in none of the sets below is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..configs import AdapterConfig, StackConfig, TrainConfig
from ..configs.adapters import parts_of
from ..configs.optimizers import OPTIM_STATES
from ..errors import CheckpointError, shorten
from ..families.labels import SAVED_BY_PEFT
from ..notices import tell

if TYPE_CHECKING:
    from ..training.trainer import Trainer
    from .checkpoints import Position

# Of TrainConfig: where and how often something is written or measured, how memory is used, and when a run ends. The parameters
# after a step keep their bits.
FREE_TRAIN_FIELDS = frozenset({
    "output_dir", "recompute", "memory_limit", "eval_steps", "eval_batch_tokens", "save_steps", "save_total_limit",
    "logging_steps", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_patience",
    "early_stopping_threshold", "nonfinite_steps", "max_skipped_steps", "paged_dir",
    "activation_offload", "report_to",
})  # fmt: skip
# Judged together, as the number of steps: a run may be prolonged.
LENGTH_FIELDS = frozenset({"max_steps", "num_train_epochs"})
FREE_ADAPTER_FIELDS = frozenset({"fan_in_fan_out", "task_type"})  # of adapters: only written to a file
_UNORDERED = frozenset({"target_modules", "feedforward_modules", "exclude_modules", "modules_to_save", "layers_to_transform"})


@dataclass(frozen=True)
class Run:
    """What decides the result of a run: options as they are written to a checkpoint, and digests."""

    options: dict[str, Any]  # "learning_rate": 0.0002, "LoraConfig.r": 8, ...
    total_steps: int
    data: str
    model: str

    @classmethod
    def of(cls, trainer: Trainer) -> Run:
        """Of a trainer, whose parameters need not be what they were at its start."""
        options = _options(trainer.config, trainer.model.adapter_config)
        options["trained parameters"] = len(trainer.parameters)
        if trainer.config.activation_dtype != "float32":  # what is computed again is not rounded
            options[_RECOMPUTED + trainer.config.activation_dtype] = trainer.recompute
        return cls(options, trainer.total_steps, trainer.data_digest, trainer.model_digest)

    def as_dict(self) -> dict[str, Any]:
        """For trainer_state.json."""
        return {"options": self.options, "total_steps": self.total_steps, "data": self.data, "model": self.model}


def _options(config: TrainConfig, adapter: AdapterConfig | StackConfig | None) -> dict[str, Any]:
    options = {key: value for key, value in config.model_dump(mode="json").items() if key not in FREE_TRAIN_FIELDS}
    for part in parts_of(adapter):  # each of another kind
        kind, values = type(part).__name__, part.model_dump(mode="json")
        if values.get("modules_to_save"):  # a classifier's adapter has its score without being asked
            values["modules_to_save"] = [name for name in values["modules_to_save"] if name not in SAVED_BY_PEFT] or None
        options |= {f"{kind}.{key}": value for key, value in values.items() if key not in FREE_ADAPTER_FIELDS}
    return options


# Whether layers are computed again, where that changes bits; older checkpoints do not say it.
_RECOMPUTED = "recompute with activation_dtype="


def check_same_run(now: Run, position: Position, allow_changes: bool) -> None:
    """Compare a run with the one that wrote a checkpoint.

    Raises
    ------
    CheckpointError
        It would have another result, or it ends before the checkpoint's step.
    """
    where = position.folder
    if position.run is None:
        if not allow_changes:
            raise CheckpointError(
                f"{where}: expected a checkpoint that lists the run's options and digests, got one of an older format; start "
                "again, or resume with --allow-changes (allow_changes=True) if nothing has changed"
            )
        return
    if now.total_steps < position.step:
        raise CheckpointError(
            f"{where}: expected a run of {position.step} steps or more, which the checkpoint has done, got {now.total_steps}; "
            "give a larger --max-steps or an earlier checkpoint"
        )
    listed = shorten(_changes(position.run, now), 8)
    if listed and not allow_changes:
        raise _other_run(position, listed)
    if listed:
        tell(f"{where}: resumed with changes: {listed}")
    if now.total_steps != position.run.total_steps:
        tell(
            f"{where}: the run had {position.run.total_steps} steps and has {now.total_steps} now; from step {position.step} "
            f"on the learning rate ({now.options.get('lr_scheduler_type')}) follows the new length"
        )


def check_same_options(config: TrainConfig, adapter: AdapterConfig | StackConfig | None, position: Position) -> None:
    """As `check_same_run`, of the options alone, before model and data are read; adapter: of one that is made from it.

    Raises
    ------
    CheckpointError
        The run would have another result.
    """
    if position.run is not None and (listed := shorten(_changed_options(position.run.options, _options(config, adapter)), 8)):
        raise _other_run(position, listed)


def _other_run(position: Position, listed: str) -> CheckpointError:
    return CheckpointError(
        f"{position.folder}: expected the run that it was written by, got changes of its result: {listed}; resume with the "
        "options and the data that the run was started with, or with --allow-changes (allow_changes=True)"
    )


def _changed_options(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Of the options that `now` has. One that is younger than the checkpoint had its default then."""
    changed = []
    for name, value in now.items():
        if name.startswith(_RECOMPUTED) and (name not in before or value is None):
            continue
        old = before[name] if name in before else _default_of(name)
        if name not in LENGTH_FIELDS and not _is_same(name, old, value):
            way_out = f" (--recompute {old} is as it was)" if name.startswith(_RECOMPUTED) else ""
            changed.append(f"{name} {_shown(old)} -> {_shown(value)}{way_out}")
    return changed


def _default_of(name: str) -> Any:
    """What an option of a run is where nobody gives it; None of an adapter's, which another run may not have at all."""
    field = TrainConfig.model_fields.get(name)
    return None if field is None else field.default


def _changes(before: Run, now: Run) -> list[str]:
    names = dict.fromkeys((*before.options, *now.options))
    found = _changed_options(before.options, {name: now.options.get(name) for name in names})
    for name in ("data", "model"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            found.append(f"{name} (digest) {old[:8]} -> {new[:8]}")
    return found


def _is_same(name: str, old: Any, new: Any) -> bool:
    if name.rpartition(".")[2] in _UNORDERED and isinstance(old, list) and isinstance(new, list):
        return sorted(map(str, old)) == sorted(map(str, new))
    if name == "optim" and old in OPTIM_STATES and new in OPTIM_STATES:
        return OPTIM_STATES[old] == OPTIM_STATES[new]  # where the state lies changes no bits
    return type(old) is type(new) and bool(old == new)


def _shown(value: Any) -> str:
    return repr(value)[:40]

"""lora-c train"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import AdapterConfig, LoraConfig, StackConfig, TrainConfig
from ..configs.adapters import kind_name
from ..errors import ConfigError, SaveError, shorten
from ..notices import tell
from .adapter_options import adapter_options, refuse_adapter_options, take_adapter
from .data_options import device_option, open_data, reading_options, training_data_options
from .early_forecast import read_and_forecast
from .json_output import print_json
from .options import Command, config_options, take
from .paths import InputPath, ResumePath
from .print_config import print_config_option
from .ranks import launch
from .run_report import begin_record, begin_samples, end_samples, report_result, resume_command, save_result
from .run_table import result_values
from .saved_settings import save_settings
from .task_options import describe_labels, task_of, task_options

if TYPE_CHECKING:
    from ..model.model import Model
    from ..training.train_result import TrainResult
    from ..training.trainer import Trainer


@click.command("train", cls=Command, short_help="Fine-tune a model on your data.")
@click.option("--model", type=InputPath(), help="Hugging Face folder of the base model.")
@device_option
@training_data_options
@reading_options
@click.option(
    "--resume", type=ResumePath(), is_flag=False, flag_value="latest", default=None,
    help="Go on from the latest checkpoint in the output folder; auto: start where there is none; or from the one given.",
)  # fmt: skip
@click.option("--adapter", type=InputPath(), help="Go on from this finished adapter, with a fresh optimizer.")
@click.option("--allow-changes", is_flag=True, default=None, help="Resume with changes of what decides the result.")
@click.option(
    "--resize-embedding", is_flag=True, default=None, help="Rows for tokens that only the tokenizer has; they are trained."
)
@click.option(
    "--samples", type=click.IntRange(0, 20), default=2, show_default=True,
    help="Held-out prompts that are answered before and after training; 0: none.",
)  # fmt: skip
@click.option(
    "--launch", metavar="mpi:N", help="Train as N processes on this machine, started by mpirun; the result has the same bits."
)
@click.option("--json", "as_json", is_flag=True, default=None, help="Print what the run has brought as one JSON object.")
@task_options
@print_config_option
@config_options(TrainConfig, "Training")
@adapter_options
def command(**settings: Any) -> None:
    """Fine-tune a model and write a PEFT adapter (or the whole model with --method full or head).

    With --task-type SEQ_CLS a classifier, on texts with labels.

    Writes adapter_model.safetensors, adapter_config.json, the tokenizer, metrics.jsonl, loss.png, config.yaml, run.json and
    README.md (a model card) to the output folder.
    """
    if settings.get("launch"):
        launch(settings["launch"])
    train_config = TrainConfig(**take(settings, TrainConfig))
    if settings.get("adapter"):
        refuse_adapter_options(settings)
    adapter_config = take_adapter(settings, train_config.seed)
    if settings.get("resize_embedding") and not isinstance(adapter_config, LoraConfig):
        raise ConfigError(
            "resize_embedding: expected peft_type LORA, whose adapter trains the new rows, got "
            f"{kind_name(adapter_config)}; train them first, or leave it out"
        )
    for key in ("model", "data"):
        if not settings.get(key):
            raise ConfigError(f"{key}: expected a path, got nothing; give --{key} PATH or put {key}: in the config file")
    if train_config.report_to:
        from ..training.reporters import reporters

        reporters(train_config)  # a package that is absent is said before the model is loaded
    run(settings, train_config, adapter_config)


def run(own: dict[str, Any], config: TrainConfig, lora: AdapterConfig | StackConfig) -> TrainResult:
    """Load, train, save, report.

    Raises
    ------
    KeyboardInterrupt
        A signal stopped the run; what it has reached is saved.
    """
    from ..comm.world import start_world
    from ..data import find_files
    from ..display.plot import tell_missing_plot
    from ..text.chosen_template import use_chat_template
    from ..training.run_checks import RunOptions, check_run
    from ..training.trainer import Trainer

    comm = start_world()
    resume: Any = {"latest": True, None: False, "": False}.get(own.get("resume"), own.get("resume"))
    allow_changes = bool(own.get("allow_changes"))
    if allow_changes and not resume:
        raise ConfigError("allow_changes: expected --resume beside it, got a run from the start; leave one of them out")
    tell_missing_plot()
    check_run(RunOptions(config, lora, adapter=own.get("adapter")))
    made = config.method in ("lora", "qlora") and not own.get("adapter") and not own.get("resize_embedding")
    for paths in filter(None, (own["data"], own.get("eval_data"))):
        find_files(paths, ("train", "validation", "test"))  # a path that is wrong is said before the model is loaded
    refuse_resume_early(resume, config, lora if made else None, allow_changes)
    task = task_of(own, config.seed)
    read = read_and_forecast(own, config, lora, task)
    model = open_model(own, config, lora, task)
    if own.get("chat_template"):
        use_chat_template(model, own["chat_template"])
    train_data, eval_data, counts = read or open_data(own, model.tokenizer, config)
    trainer = Trainer(model, train_data, config, eval_data)
    describe_run(trainer)
    resume_run(trainer, resume, allow_changes)
    if comm.broadcast(trainer.resumed_at >= trainer.total_steps and is_reported(trainer.output_dir)):
        return _report_again(trainer, bool(own.get("as_json")))
    if comm.rank > 0:
        return train_along(trainer)
    return train_and_report(trainer, own, lora, counts)


def train_and_report(
    trainer: Trainer, own: dict[str, Any], lora: AdapterConfig | StackConfig, counts: dict[str, int]
) -> TrainResult:
    """The part of the process that writes and prints: alone, or rank 0."""
    from ..files.os_errors import make_folder
    from ..runs.lock import run_lock
    from ..training.interrupt import deferred_interrupt
    from ..training.run_checks import RunOptions, ignored_options

    model, config, has_eval_data = trainer.model, trainer.config, trainer.eval_data is not None
    tell_leftovers(trainer)
    ignored = ignored_options(RunOptions(config, lora, model, has_eval_data, trainer.total_steps, own.get("adapter")))
    with run_lock(make_folder(trainer.output_dir)):
        save_settings(own, config, lora, ignored={name for name, _ in ignored})  # a refused run leaves it
        samples = begin_samples(trainer, own.get("samples", 0))
        record = begin_record(trainer, own["model"], counts, samples)
        with deferred_interrupt() as stop:
            result = trainer.train(overwrite=True)  # whether it may be is decided before anything is loaded
            stop.listener = say_when_saved
            saved = save_result(trainer, result)
            if not stop.requested:
                end_samples(trainer, samples, lambda: stop.requested)
            title = f"{Path(own['model']).name} on {Path(trainer.train_data.source).name}"
            report_result(trainer, result, saved, record, samples, title, as_json=bool(own.get("as_json")))
    trainer.comm.close()
    if result.unsaved:
        missing = "; ".join(result.unsaved)
        raise SaveError(f"checkpoints: expected one of the last state, got none at {missing}")
    if result.interrupted:
        click.echo(f"go on     {resume_command(trainer.output_dir)}", err=True)
    if stop.requested or result.interrupted:
        raise stop.exception()
    return result


def train_along(trainer: Trainer) -> TrainResult:
    """The part of a rank that writes nothing; it stays until rank 0 has written everything.

    Raises
    ------
    KeyboardInterrupt
        A signal stopped the run.
    """
    from ..training.interrupt import deferred_interrupt

    with deferred_interrupt() as stop:
        result = trainer.train(overwrite=True)
        trainer.comm.close()
    if result.interrupted:
        raise stop.exception()
    return result


def _report_again(trainer: Trainer, as_json: bool) -> TrainResult:
    """What a run says that had ended before it was called."""
    done = f"the run in {trainer.output_dir} has done all {trainer.total_steps:,} steps"
    click.echo(f"finished  {done}; nothing is trained, a larger --epochs or --max-steps prolongs it", err=True)
    result = trainer.train()
    if as_json:
        kind = "adapter" if trainer.model.adapter_config is not None else "model"
        print_json(result_values(result, kind, str(trainer.output_dir)))
    return result


def is_reported(folder: Path) -> bool:
    """Whether a run has come to its end there, with its adapter saved and its result in run.json."""
    from ..runs.record import read_run

    return bool((read_run(folder) or {}).get("result"))


def tell_leftovers(trainer: Trainer) -> None:
    """Say which checkpoints of the run before stay in a folder that is written over."""
    from ..runs.checkpoints import checkpoint_folders

    found = [] if trainer.resumed_at else [folder.name for folder in checkpoint_folders(trainer.output_dir)]
    if found:
        stay, them = ("stays", "it when it is") if len(found) == 1 else ("stay", "them when they are")
        tell(f"{trainer.output_dir}: {shorten(found)} of the run before {stay} there; remove {them} not needed")


def say_when_saved(count: int) -> None:
    """The answer to a signal after the last step."""
    if count < 3:
        again = "again" if count == 2 else "twice more"
        click.echo(f"stopping when everything is saved; press {again} to end at once", err=True)


def refuse_resume_early(
    resume: Any, config: TrainConfig, lora: AdapterConfig | StackConfig | None, allow_changes: bool
) -> None:
    """What of a resumed run can be refused before its base is loaded."""
    from ..runs.checkpoints import find_checkpoint, read_position
    from ..runs.resume import check_same_options

    folder = find_checkpoint(Path(config.output_dir), resume)
    if folder is not None:
        position = read_position(folder)
        if not allow_changes:
            check_same_options(config, lora, position)


def resume_run(trainer: Trainer, resume: Any, allow_changes: bool) -> None:
    """Take up a checkpoint, and say which."""
    from ..runs.checkpoints import find_checkpoint

    folder = find_checkpoint(trainer.output_dir, resume)
    if folder is not None:
        step = trainer.resume_from(folder, allow_changes)
        click.echo(f"resumed   from {folder} at step {step:,} of {trainer.total_steps:,}", err=True)


def open_model(own: dict[str, Any], config: TrainConfig, lora: AdapterConfig | StackConfig, task: dict[str, Any]) -> Model:
    """Load the base for a method, with what is trained on it."""
    from ..model.opening import load_model
    from ..model.resize_embedding import train_added_tokens
    from ..training.base_options import add_adapters, base_options

    path, resize = own["model"], bool(own.get("resize_embedding"))
    options: dict[str, Any] = task | base_options(path, config)
    model = load_model(path, resize_embedding=resize, device=own.get("device"), **options)
    if own.get("adapter") is not None:
        model.load_adapter(own["adapter"])
    elif config.method in ("lora", "qlora"):
        add_adapters(model, train_added_tokens(lora, model) if isinstance(lora, LoraConfig) else lora)
    return model


def describe_run(trainer: Trainer) -> None:
    """What will happen, before it happens: parameters, steps, memory."""
    from ..training.memory import forecast, kept_text

    model, config = trainer.model, trainer.config
    trained = sum(p.size for p in trainer.parameters)
    total = model.num_parameters()
    plan = forecast(trainer)
    click.echo(
        f"method    {config.method}{_kind(model)}{_precision(config)}: {trained:,} trained of {total:,} parameters "
        f"({100 * trained / total:.2f} %)",
        err=True,
    )
    click.echo(
        f"steps     {trainer.total_steps:,} of {config.per_device_train_batch_size * config.gradient_accumulation_steps} "
        f"sequences; learning rate {config.learning_rate:g}, {config.lr_scheduler_type}, {trainer.warmup_steps} warm-up",
        err=True,
    )
    if model.labels is not None:
        click.echo(f"task      classifier: {describe_labels(model.labels)}", err=True)
    if model.device != "cpu":
        click.echo(f"device    {model.device}", err=True)
    click.echo(f"memory    {plan.describe()}{kept_text(trainer.recompute, config.activation_dtype)}", err=True)


def _precision(config: TrainConfig) -> str:
    return "" if config.precision == "fast" else f" in {config.precision}"


def _kind(model: Model) -> str:
    """The kind of the adapter, where it is not the one that the method is called after."""
    config = model.adapter_config
    return "" if config is None or isinstance(config, LoraConfig) else f" ({kind_name(config)})"

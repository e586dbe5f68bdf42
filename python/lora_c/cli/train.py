"""lora-c train"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import LoraConfig, TrainConfig
from ..errors import ConfigError, LoraCError, SaveError, shorten
from ..notices import tell
from .data import describe_data
from .json_output import print_json
from .options import Command, config_options, take
from .paths import RUN_MARK, InputPath, InputPaths, ResumePath, flatten, refuse_foreign_settings
from .print_config import print_config_option
from .run_table import result_values, show_table

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model import Model
    from ..trainer import Trainer, TrainResult


@click.command("train", cls=Command, short_help="Fine-tune a model on your data.")
@click.option("--model", type=InputPath(), help="Hugging Face folder of the base model.")
@click.option(
    "--data", type=InputPaths(), multiple=True, callback=flatten,
    help="Training data: .jsonl, .json, .csv, .parquet or .txt, several, or a folder.",
)  # fmt: skip
@click.option(
    "--eval-data", type=InputPaths(), multiple=True, callback=flatten,
    help="Held-out data; default: --val-fraction of the data, or its validation split.",
)  # fmt: skip
@click.option("--limit", type=int, help="Read at most this many training examples.")
@click.option(
    "--resume", type=ResumePath(), is_flag=False, flag_value="latest", default=None,
    help="Go on from the latest checkpoint in the output folder; auto: start where there is none; or from the one given.",
)  # fmt: skip
@click.option("--allow-changes", is_flag=True, default=None, help="Resume with changes of what decides the result.")
@click.option(
    "--resize-embedding", is_flag=True, default=None, help="Rows for tokens that only the tokenizer has; they are trained."
)
@click.option("--json", "as_json", is_flag=True, default=None, help="Print what the run has brought as one JSON object.")
@print_config_option
@config_options(TrainConfig, "Training")
@config_options(LoraConfig, "Adapter", skip=("seed",))
def command(**settings: Any) -> None:
    """Fine-tune a model and write a PEFT adapter (or the whole model with --method full or head).

    Writes adapter_model.safetensors, adapter_config.json, metrics.jsonl, loss.png and config.yaml to the output folder.
    """
    train_config = TrainConfig(**take(settings, TrainConfig))
    lora_config = LoraConfig(seed=train_config.seed, **take(settings, LoraConfig, skip=("seed",)))
    for key in ("model", "data"):
        if not settings.get(key):
            raise ConfigError(f"{key}: expected a path, got nothing; give --{key} PATH or put {key}: in the config file")
    run(settings, train_config, lora_config)


def run(own: dict[str, Any], config: TrainConfig, lora: LoraConfig) -> TrainResult:
    """Load, train, save, report."""
    from ..plot import tell_missing_plot
    from ..run_checks import RunOptions, check_run, ignored_options
    from ..trainer import Trainer

    tell_missing_plot()
    check_run(RunOptions(config, lora))
    model = open_model(own["model"], config, lora, bool(own.get("resize_embedding")))
    train_data, eval_data = open_data(own, model, config)
    trainer = Trainer(model, train_data, config, eval_data)
    describe_run(trainer)
    resume = own.get("resume") or False
    trainer.resume_from(True if resume == "latest" else resume, bool(own.get("allow_changes")))
    whole = RunOptions(config, lora, model, eval_data is not None, trainer.total_steps)
    save_resolved_config(own, config, lora, ignored={name for name, _ in ignored_options(whole)})  # a refused run leaves it
    result = trainer.train()
    save_result(
        trainer, result, title=f"{Path(own['model']).name} on {Path(train_data.source).name}", as_json=bool(own.get("as_json"))
    )
    return result


def open_model(path: str, config: TrainConfig, lora: LoraConfig, resize: bool = False) -> Model:
    """Load the base for a method. What is quantized already (a prequantized folder, blocks of a GGUF file) stays as it is."""
    from ..gguf.checkpoint import has_blocks
    from ..model import load_model
    from ..resize_embedding import train_added_tokens

    options: dict[str, Any] = {"resize_embedding": resize}
    if config.method == "qlora" and not has_blocks(path):
        options |= {"quantize": "nf4", "double_quant": config.double_quant, "block_size": config.block_size}
    elif config.method in ("head", "full"):
        options |= {"trainable": config.method}
    model = load_model(path, **options)
    if config.method in ("lora", "qlora"):
        model.add_adapter(train_added_tokens(lora, model))
    return model


def open_data(own: dict[str, Any], model: Model, config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """Training data, and held-out data: what is given, a share of the training data, or the folder's validation split."""
    from ..data import FoundFiles, find_files, load_files

    if own.get("eval_data") and config.val_fraction > 0:
        raise ConfigError("val_fraction: expected it unset beside eval_data, got both; leave one of them out")
    found = find_files(own["data"])
    held_out = None
    if own.get("eval_data"):
        held_out = find_files(own["eval_data"], ("validation", "test", "train"))
    elif config.val_fraction == 0 and "validation" in found.others:
        held_out = FoundFiles(found.others.pop("validation"), "validation")
    data = load_files(found, model.tokenizer, max_seq_length=config.max_seq_length, limit=own.get("limit"))
    describe_data("data", data)
    if held_out is None:
        return _split(data, config) if config.val_fraction > 0 else (data, None)
    eval_data = load_files(held_out, model.tokenizer, max_seq_length=config.max_seq_length)
    describe_data("held out", eval_data)
    both = {path.resolve() for path in found.taken} & {path.resolve() for path in held_out.taken}
    if both:
        tell(f"eval_data: {shorten(sorted(path.name for path in both))} is trained on too; its loss says nothing of new text")
    return data, eval_data


def _split(data: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset]:
    train_data, eval_data = data.split(config.val_fraction, config.seed)
    share = f"val_fraction {config.val_fraction:g}"
    click.echo(f"split     {len(eval_data):,} of {len(data):,} sequences held out ({share})", err=True)
    return train_data, eval_data


def describe_run(trainer: Trainer) -> None:
    """What will happen, before it happens: parameters, steps, memory."""
    from ..memory import forecast

    model, config = trainer.model, trainer.config
    trained = sum(p.size for p in trainer.parameters)
    total = model.num_parameters()
    plan = forecast(trainer)
    click.echo(
        f"method    {config.method}: {trained:,} trained of {total:,} parameters ({100 * trained / total:.2f} %)", err=True
    )
    click.echo(
        f"steps     {trainer.total_steps:,} of {config.per_device_train_batch_size * config.gradient_accumulation_steps} "
        f"sequences; learning rate {config.learning_rate:g}, {config.lr_scheduler_type}, {trainer.warmup_steps} warm-up",
        err=True,
    )
    click.echo(f"memory    {plan.describe()}", err=True)


def save_resolved_config(own: dict[str, Any], config: TrainConfig, lora: LoraConfig, ignored: set[str]) -> None:
    """config.yaml in the output folder starts the same run again; options without effect in it are not written."""
    import yaml

    from ..files import write_text
    from ..os_errors import make_folder

    folder = make_folder(config.output_dir)
    refuse_foreign_settings(folder / "config.yaml")
    values = {k: v for k, v in own.items() if v is not None and k not in ("resume", "allow_changes", "as_json")}
    values |= config.model_dump(mode="json") | {k: v for k, v in lora.model_dump(mode="json").items() if k != "seed"}
    values = {key: value for key, value in values.items() if key not in ignored}
    write_text(folder / "config.yaml", f"{RUN_MARK}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}")


def save_result(trainer: Trainer, result: TrainResult, title: str, as_json: bool = False) -> None:
    from ..plot import plot_losses
    from ..run_checkpoints import checkpoint_folder
    from ..written import BASE_FOLDER, has_own_base

    folder = trainer.output_dir
    kind = "adapter" if trainer.model.adapter_config is not None else "model"
    try:
        trainer.model.save_adapter(folder) if kind == "adapter" else trainer.model.save(folder)
    except LoraCError as error:
        if not trainer.checkpoints:
            raise
        state = checkpoint_folder(folder, trainer.checkpoints[-1])
        raise SaveError(f"{error}; what was trained is in {state}") from None
    plotted = plot_losses(trainer.history, folder / "loss.png", title)
    base = f", with the base that it needs in {BASE_FOLDER}/" if kind == "adapter" and has_own_base(folder, None) else ""
    show_table(result, f"{kind} in {folder}{base}" + (", loss.png" if plotted else ""))
    if as_json:
        print_json(result_values(result, kind, str(folder)))
    if result.unsaved:
        missing = "; ".join(result.unsaved)
        raise SaveError(f"checkpoints: expected one whenever it was asked for, got none at {missing}")
    if result.interrupted:
        raise KeyboardInterrupt

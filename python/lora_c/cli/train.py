"""lora-c train"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import LoraConfig, TrainConfig
from ..errors import ConfigError, LoraCError, SaveError
from .data_options import open_data, reading_options, training_data_options
from .options import Command, config_options, take
from .paths import RUN_MARK, InputPath, ResumePath, refuse_foreign_settings

if TYPE_CHECKING:
    from ..model import Model
    from ..trainer import Trainer, TrainResult


@click.command("train", cls=Command, short_help="Fine-tune a model on your data.")
@click.option("--model", type=InputPath(), help="Hugging Face folder of the base model.")
@training_data_options
@reading_options
@click.option(
    "--resume", type=ResumePath(), is_flag=False, flag_value="latest", default=None,
    help="Go on from the latest checkpoint in the output folder; auto: start where there is none; or from the one given.",
)  # fmt: skip
@click.option("--allow-changes", is_flag=True, default=None, help="Resume with changes of what decides the result.")
@click.option(
    "--resize-embedding", is_flag=True, default=None, help="Rows for tokens that only the tokenizer has; they are trained."
)
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
    from ..chosen_template import use_chat_template
    from ..run_checks import RunOptions, check_run, ignored_options
    from ..trainer import Trainer

    if own.get("allow_changes") and not own.get("resume"):
        raise ConfigError("allow_changes: expected --resume beside it, got a run from the start; leave one of them out")
    check_run(RunOptions(config, lora))
    model = open_model(own["model"], config, lora, bool(own.get("resize_embedding")))
    if own.get("chat_template"):
        use_chat_template(model, own["chat_template"])
    train_data, eval_data = open_data(own, model.tokenizer, config)
    trainer = Trainer(model, train_data, config, eval_data)
    describe_run(trainer)
    resume = own.get("resume") or False
    trainer.resume_from(True if resume == "latest" else resume, bool(own.get("allow_changes")))
    whole = RunOptions(config, lora, model, eval_data is not None, trainer.total_steps)
    save_resolved_config(own, config, lora, ignored={name for name, _ in ignored_options(whole)})  # a refused run leaves it
    result = trainer.train()
    save_result(trainer, result, title=f"{Path(own['model']).name} on {Path(train_data.source).name}")
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
    values = {k: v for k, v in own.items() if v is not None and k not in ("resume", "allow_changes")}
    values |= config.model_dump(mode="json") | {k: v for k, v in lora.model_dump(mode="json").items() if k != "seed"}
    values = {key: value for key, value in values.items() if key not in ignored}
    write_text(folder / "config.yaml", f"{RUN_MARK}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}")


def save_result(trainer: Trainer, result: TrainResult, title: str) -> None:
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
    held_out = "" if result.eval_loss is None else f", held-out loss {result.eval_loss:.4f}"
    click.echo(
        f"done      {result.steps} steps in {result.elapsed_seconds:.1f} s, {result.tokens_per_second:,.0f} tokens/s, "
        f"peak {result.peak_memory_bytes / 2**20:,.0f} MiB\n"
        f"loss      {result.train_loss:.4f}{held_out}\n"
        f"saved     {kind} in {folder}{base}" + (", loss.png" if plotted else "; no loss.png (pip install 'lora-c[plot]')"),
        err=True,
    )
    if result.unsaved:
        missing = "; ".join(result.unsaved)
        raise SaveError(f"checkpoints: expected one whenever it was asked for, got none at {missing}")
    if result.interrupted:
        raise KeyboardInterrupt

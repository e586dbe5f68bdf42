"""lora-c generate"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import GenerationConfig
from ..errors import ConfigError
from .options import config_file_option, config_options, merge_settings, read_config_file, refuse_unknown, take

if TYPE_CHECKING:
    from ..model import Model

OWN_KEYS = ("model", "adapter", "prompt", "quantize", "chat_template")


@click.command("generate", short_help="Write text from a prompt.")
@click.argument("prompt", required=False)
@click.option("--model", type=str, help="Model folder.")
@click.option("--adapter", type=str, help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(["nf4"]), help="Quantize the base while loading.")
@click.option("--chat-template/--raw", "chat_template", default=None, help="Wrap the prompt as a user's turn, or not.")
@config_file_option
@config_options(GenerationConfig)
def command(config_file: Path | None, **flags: Any) -> None:
    """Write text from PROMPT (from standard input where it is absent), token by token."""
    settings = merge_settings(read_config_file(config_file), flags)
    own = {key: settings.pop(key) for key in OWN_KEYS if key in settings}
    config = GenerationConfig(**take(settings, GenerationConfig))
    refuse_unknown(settings, [*OWN_KEYS, *GenerationConfig.model_fields])
    model = open_model(own)
    text = own.get("prompt") if own.get("prompt") is not None else sys.stdin.read()
    template = own.get("chat_template")
    if template is None:
        template = model.tokenizer.chat_template is not None
    prompt: Any = [{"role": "user", "content": text}] if template else text
    for piece in model.stream(prompt, config):
        click.echo(piece, nl=False)
    click.echo()


def open_model(own: dict[str, Any]) -> Model:
    """The model of --model, --adapter and --quantize."""
    from ..model import load_model

    if not own.get("model"):
        raise ConfigError("model: expected a model folder, got nothing; give --model PATH")
    model = load_model(own["model"], quantize=own.get("quantize"))
    if own.get("adapter"):
        model.load_adapter(own["adapter"])
    return model

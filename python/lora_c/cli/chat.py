"""lora-c chat"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..configs import GenerationConfig
from ..errors import DataError
from .generate import open_model
from .options import config_file_option, config_options, merge_settings, read_config_file, refuse_unknown, take

OWN_KEYS = ("model", "adapter", "quantize", "system")


@click.command("chat", short_help="Talk with a model.")
@click.option("--model", type=str, help="Model folder.")
@click.option("--adapter", type=str, help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(["nf4"]), help="Quantize the base while loading.")
@click.option("--system", type=str, help="System message at the start.")
@config_file_option
@config_options(GenerationConfig)
def command(config_file: Path | None, **flags: Any) -> None:
    """Talk with a model. An empty line or Ctrl-D ends, /reset forgets the conversation."""
    settings = merge_settings(read_config_file(config_file), flags)
    own = {key: settings.pop(key) for key in OWN_KEYS if key in settings}
    config = GenerationConfig(**take(settings, GenerationConfig))
    refuse_unknown(settings, [*OWN_KEYS, *GenerationConfig.model_fields])
    model = open_model(own)
    if model.tokenizer.chat_template is None:
        raise DataError("model: expected a chat template for chat, got none; use lora-c generate with this model")
    opening = [{"role": "system", "content": own["system"]}] if own.get("system") else []
    messages = list(opening)
    while True:
        try:
            text = click.prompt(click.style("you", fg="cyan"), prompt_suffix="  ", default="", show_default=False)
        except (EOFError, click.Abort):
            break
        if not text:
            break
        if text == "/reset":
            messages = list(opening)
            continue
        messages.append({"role": "user", "content": text})
        click.echo(click.style("model", fg="green") + "  ", nl=False)
        answer = ""
        for piece in model.stream(messages, config):
            answer += piece
            click.echo(piece, nl=False)
        click.echo()
        messages.append({"role": "assistant", "content": answer})

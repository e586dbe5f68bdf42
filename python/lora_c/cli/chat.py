"""lora-c chat"""

from __future__ import annotations

from typing import Any

import click

from ..configs import GenerationConfig
from ..errors import DataError
from ..generation import resolve
from .data_options import chat_template_option
from .generate import open_model
from .options import Command, config_options, take
from .paths import InputPath
from .run_folder import run_option


@click.command("chat", cls=Command, short_help="Talk with a model.")
@run_option
@click.option("--model", type=InputPath(), help="Model folder.")
@click.option("--adapter", type=InputPath(), help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(["nf4"]), help="Quantize the base while loading.")
@chat_template_option
@click.option("--system", type=str, help="System message at the start.")
@config_options(GenerationConfig, "Generation", skip=("bad_words_ids",))
def command(**own: Any) -> None:
    """Talk with a model. An empty line or Ctrl-D ends, /reset forgets the conversation.

    The settings of the model's generation_config.json hold where no flag says otherwise.
    """
    options = take(own, GenerationConfig)
    GenerationConfig(**options)  # what is wrong in them is said before the model is loaded
    model = open_model(own)
    config = resolve(model.generation_config, options)
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

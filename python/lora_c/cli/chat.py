"""lora-c chat"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from ..chat.commands import Commands
from ..chat.conversation import Conversation
from ..configs import QUANT_TYPES, GenerationConfig
from ..generation.batch import resolve
from .data_options import chat_template_option, device_option
from .generate import open_model
from .options import Command, config_options, take
from .paths import InputPath
from .run_folder import run_option


@click.command("chat", cls=Command, short_help="Talk with a model.")
@run_option
@click.option("--model", type=InputPath(), help="Model folder.")
@click.option("--adapter", type=InputPath(), help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(QUANT_TYPES), help="Quantize the base while loading.")
@device_option
@chat_template_option
@click.option("--system", type=str, help="System message at the start.")
@config_options(GenerationConfig, "Generation", skip=("bad_words_ids",))
def command(**own: Any) -> None:
    """Talk with a model. Enter sends, Esc-Enter begins a new line, /help lists the commands, Ctrl-D leaves.

    Without a terminal each line of standard input is a message, and the answers alone are written.
    The settings of the model's generation_config.json hold where no flag says otherwise.
    """
    options = take(own, GenerationConfig)
    GenerationConfig(**options)  # what is wrong in them is said before the model is loaded
    model = open_model(own)
    conversation = Conversation(model, resolve(model.generation_config, options), own.get("system"))
    commands = Commands(conversation, {name: own["adapter"] for name in model.adapter_names})
    talk: Callable[[Commands], int]
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from ..chat.terminal import talk
    else:
        from ..chat.piped import talk
    if status := talk(commands):
        raise click.exceptions.Exit(status)

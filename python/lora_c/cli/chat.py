"""lora-c chat"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import click

from ..chat.commands import Commands
from ..chat.conversation import Conversation
from ..configs import QUANT_TYPES, GenerationConfig
from ..generation.batch import resolve
from ..notices import tell
from .data_options import chat_template_option, device_option
from .generate import open_model
from .options import Command, config_options, take
from .paths import InputPath
from .run_folder import run_option

EXTRA = "pip install 'lora-c[chat]'"


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

    Without a terminal each line of standard input is a message, and the answers alone are written; so it is on one without
    the package prompt_toolkit (pip install 'lora-c[chat]'), and on Windows.
    The settings of the model's generation_config.json hold where no flag says otherwise.
    """
    options = take(own, GenerationConfig)
    GenerationConfig(**options)  # what is wrong in them is said before the model is loaded
    model = open_model(own)
    conversation = Conversation(model, resolve(model.generation_config, options), own.get("system"))
    commands = Commands(conversation, {name: own["adapter"] for name in model.adapter_names})
    if status := _talk()(commands):
        raise click.exceptions.Exit(status)


def _talk() -> Callable[[Commands], int]:
    """What reads the messages: a terminal's editor where there is one and the package for it, else plain lines."""
    from ..chat import piped

    if not (sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"):
        return piped.talk
    if find_spec("termios") is None:  # Windows, whose terminals edit a line themselves
        return piped.talk
    if find_spec("prompt_toolkit") is None:
        tell(f"lines have no editing and no history: prompt_toolkit is not installed ({EXTRA})")
        return piped.talk
    from ..chat import terminal

    return terminal.talk

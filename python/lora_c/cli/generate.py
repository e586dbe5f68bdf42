"""lora-c generate"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ..configs import GenerationConfig
from ..errors import ConfigError
from .options import Command, config_options, take

if TYPE_CHECKING:
    from ..model import Model


@click.command("generate", cls=Command, short_help="Write text from a prompt.")
@click.argument("prompt", required=False)
@click.option("--model", type=str, help="Model folder.")
@click.option("--adapter", type=str, help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(["nf4"]), help="Quantize the base while loading.")
@click.option("--chat-template/--raw", "chat_template", default=None, help="Wrap the prompt as a user's turn, or not.")
@config_options(GenerationConfig, "Generation")
def command(**own: Any) -> None:
    """Write text from PROMPT (from standard input where it is absent), token by token."""
    config = GenerationConfig(**take(own, GenerationConfig))
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

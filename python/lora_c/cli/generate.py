"""lora-c generate"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..checkpoints.written import BASE_FOLDER
from ..configs import QUANT_TYPES, SAMPLING_FIELDS, GenerationConfig
from ..display.printable import printable_pieces
from ..errors import ConfigError, DataError
from ..files.regular_file import read_regular
from ..generation.batch import resolve
from ..generation.sampling import with_seed
from ..notices import tell
from .data_options import chat_template_option, device_option
from .flag_names import flag_name
from .options import Command, config_options, take
from .paths import InputPath
from .run_folder import check_base_of_run, has_run_option, quantization_of_run, run_option

if TYPE_CHECKING:
    from ..model.model import Model


class Texts(click.Argument):
    """Any number of texts; a single one from a file of settings is one text, not a sequence of letters."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        return super().type_cast_value(ctx, (value,) if isinstance(value, str) else value)


@click.command("generate", cls=Command, short_help="Write text from prompts.")
@run_option
@click.argument("prompt", nargs=-1, cls=Texts)
@click.option("--prompts", type=InputPath(), metavar="FILE", help="Text file with one prompt per line.")
@click.option("--model", type=InputPath(), help="Model folder.")
@click.option("--adapter", type=InputPath(), help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(QUANT_TYPES), help="Quantize the base while loading.")
@device_option
@chat_template_option
@click.option("--raw", is_flag=True, help="Give the prompt as it stands, not as a user's turn.")
@click.option("--use-generation-config", is_flag=True, help="Take the settings of the model's generation_config.json.")
@config_options(GenerationConfig, "Generation", skip=("bad_words_ids",))
def command(**own: Any) -> None:
    """Write text from PROMPT (from standard input where it is absent), token by token.

    Several prompts are decoded together; the answers are written as JSON lines with "prompt" and "answer". Draws without
    --seed write the seed to standard error.
    """
    options = take(own, GenerationConfig)
    config = GenerationConfig(**options)
    tell_idle_flags(options, config)
    texts = [read_piped() if text == "-" else text for text in own.get("prompt") or ()]
    if "" in texts:
        raise ConfigError("prompt: expected a text, got an empty one")
    texts = [*texts, *(read_prompts(Path(own["prompts"])) if own.get("prompts") else ())]
    model = open_model(own)
    if own.get("use_generation_config"):
        config = resolve(model.generation_config, options)
    seeded = with_seed(config)
    if seeded is not config:
        config = seeded
        click.echo(f"seed      {config.seed}", err=True)
    template = model.tokenizer.chat_template is not None and not own.get("raw")

    def prompt_of(text: str) -> Any:
        return [{"role": "user", "content": text}] if template else text

    n = config.num_return_sequences
    if not texts and sys.stdin.isatty():
        click.echo("prompt    read from standard input, up to Ctrl-D", err=True)
    texts = texts or [read_piped()]
    if len(texts) > 1 or n > 1 or own.get("prompts"):
        asked = [text for text in texts for _ in range(n)]
        for text, answer in zip(asked, model.generate([prompt_of(text) for text in texts], config), strict=True):
            click.echo(json.dumps({"prompt": text, "answer": answer}, ensure_ascii=False))
        return
    pieces = model.stream(prompt_of(texts[0]), config)
    for piece in printable_pieces(pieces) if sys.stdout.isatty() else pieces:
        click.echo(piece, nl=False)
    click.echo()


def tell_idle_flags(options: dict[str, Any], config: GenerationConfig) -> None:
    """Say which flags change nothing, because no token is drawn at random."""
    idle = sorted(options.keys() & {*SAMPLING_FIELDS, "seed"}) if not config.sampling else []
    idle = [name for name in idle if name != "temperature" or config.temperature]
    if idle:
        why = "--temperature 0" if config.temperature == 0 else "--no-do-sample"
        why = why if config.temperature == 0 or config.do_sample is False else "nothing asks for draws"
        tell(f"{', '.join(map(flag_name, idle))}: no effect, the answer is greedy ({why})")


def read_piped() -> str:
    """The text on standard input, without the newline that ends its last line."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError("prompt: expected UTF-8 text on standard input, got other bytes") from None
    text = text.replace("\r\n", "\n").removesuffix("\n")
    if not text:
        raise ConfigError("prompt: expected a text on standard input, got nothing; give PROMPT")
    return text


def read_prompts(path: Path, option: str = "prompts") -> list[str]:
    """The lines of a file that are not empty; `option`: the one that names it."""
    try:
        text = read_regular(path, DataError, 256 << 20).decode("utf-8-sig")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(
            f"{option}: expected a text file with one {option[:-1]} per line, got {str(path)!r}: {reason}"
        ) from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{option}: expected at least one line in {str(path)!r}, got none")
    return prompts


def open_model(own: dict[str, Any]) -> Model:
    """The model of --model, --adapter, --quantize, --device, --chat-template and, of what generates nothing, --precision."""
    from ..model.opening import load_model
    from ..text.chosen_template import use_chat_template, use_template_of_adapter

    if not own.get("model"):
        or_run = " or --run DIR" if has_run_option() else ""
        raise ConfigError(f"model: expected a model folder, got nothing; give --model PATH{or_run}")
    check_base_of_run(own["model"])
    options: dict[str, Any] = {"quantize": own.get("quantize")}
    if (trained := quantization_of_run()).get("quantize") == options["quantize"]:
        options |= trained
    model = load_model(own["model"], device=own.get("device"), **options)
    if own.get("adapter"):
        model.load_adapter(own["adapter"])
        if model.adapter is not None and model.adapter.base:
            names = f"{own['adapter']}: the adapter brings a base of its own ({BASE_FOLDER}/)"
            tell(f"{names}, which takes the place of {len(model.adapter.base)} weights of {own['model']}")
    if own.get("chat_template"):
        use_chat_template(model, own["chat_template"])
    elif own.get("adapter"):
        use_template_of_adapter(model, own["adapter"])
    if own.get("precision"):
        model.decoder.precision = own["precision"]
    return model

"""lora-c classify"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import QUANT_TYPES
from ..errors import ConfigError
from .data_options import device_option, precision_option
from .generate import Texts, open_model, read_piped, read_prompts
from .options import Command
from .paths import InputPath
from .run_folder import run_option

if TYPE_CHECKING:
    from ..model.classification import Classification

_TOGETHER = 256  # texts whose answers are written as soon as they are known


@click.command("classify", cls=Command, short_help="Say which label a text has.")
@run_option
@click.argument("text", nargs=-1, cls=Texts)
@click.option("--texts", type=InputPath(), metavar="FILE", help="Text file with one text per line.")
@click.option("--text-pair", type=str, metavar="TEXT", help="Second text, for a classifier of pairs.")
@click.option("--model", type=InputPath(), help="Model folder.")
@click.option("--adapter", type=InputPath(), help="PEFT adapter folder.")
@click.option("--quantize", type=click.Choice(QUANT_TYPES), help="Quantize the base while loading.")
@device_option
@precision_option("exact")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each text on a terminal, too.")
@click.option("--max-seq-length", type=click.IntRange(1), help="Longest text in tokens; default: the model's context.")
def command(**own: Any) -> None:
    """Say which label TEXT has (from standard input where it is absent), with its probability.

    On a terminal a line for each text; elsewhere one JSON object in a line for each text: "label", "score" (its probability,
    or with regression the number), "labels" (all that hold, where a text can have several) and "scores" of every label.
    """
    texts = [read_piped() if text == "-" else text for text in own.get("text") or ()]
    if "" in texts:
        raise ConfigError("text: expected a text, got an empty one")
    texts = [*texts, *(read_prompts(Path(own["texts"]), "texts") if own.get("texts") else ())]
    model = open_model(own)
    if not texts and sys.stdin.isatty():
        click.echo("text      read from standard input, up to Ctrl-D", err=True)
    texts = texts or [read_piped()]
    pair = {"text_pair": own["text_pair"]} if own.get("text_pair") is not None else {}
    for begin in range(0, len(texts), _TOGETHER):
        part = texts[begin : begin + _TOGETHER]
        found = model.classify([{"text": text, **pair} for text in part], max_seq_length=own.get("max_seq_length"))
        for text, said in zip(part, found, strict=True):
            if sys.stdout.isatty() and not own["as_json"]:
                _show(text, said)
            else:
                click.echo(json.dumps({"text": text, **pair, **said.as_dict()}, ensure_ascii=False))


def _show(text: str, said: Classification) -> None:
    """A line for a person: label, its probability, as much of the text as fits."""
    from ..display.printable import printable

    label = ", ".join(said.labels) if len(said.labels) > 1 else str(said.label)
    begin = f"{label[:24]:<12}  {said.score:8.4f}  "
    room = max(8, shutil.get_terminal_size().columns - len(begin))
    line = " ".join(printable(text).split())
    click.echo(begin + (line if len(line) <= room else line[: room - 3] + "..."))

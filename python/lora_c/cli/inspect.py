"""lora-c inspect"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .json_output import json_option, print_json
from .options import Command
from .paths import InputPath

if TYPE_CHECKING:
    from ..inspection import Report


@click.command("inspect", cls=Command, short_help="Say what a file or folder is.")
@click.argument("path", type=InputPath())
@json_option
def command(path: str, as_json: bool) -> int:
    """Format, architecture, types, sizes, adapter rank and targets, and what is unsupported in it.

    Knows model folders (also quantized ones), safetensors, GGUF, adapters, training output and checkpoints, tokenizers and
    data sets. The exit status is 1 where something in it would be refused.
    """
    from ..inspection import inspect_path
    from .export import find_source

    report = inspect_path(find_source(path))
    if as_json:
        print_json(report.as_dict())
    else:
        show(report)
    return 0 if report.usable else 1


def show(report: Report) -> None:
    """A table of facts, a table of element types, and the problems."""
    from rich.table import Table
    from rich.text import Text

    from ..display.console import TextConsole

    console = TextConsole()
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_row("path", Text(report.path, overflow="fold"))
    facts.add_row("is", Text(report.kind, style="bold"))
    facts.add_row("size", size_text(report.bytes))
    for label, value in report.facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        facts.add_row(label, Text(shown, overflow="fold"))
    console.print(facts)
    if report.tensors:
        tensors = Table("type", "tensors", "elements", "size", box=None, padding=(0, 2, 0, 0))
        for column in tensors.columns[1:]:
            column.justify = "right"
        for row in report.tensors:
            tensors.add_row(row["dtype"], f"{row['tensors']:,}", f"{row['elements']:,}", size_text(row["bytes"]))
        console.print()
        console.print(tensors)
    for problem in report.problems:
        console.print(Text.assemble(("refused  ", "bold red"), problem))


def size_text(n: int) -> str:
    """Bytes in the unit that suits them."""
    size, unit = float(n), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{n:,} B" if unit == "B" else f"{size:,.1f} {unit}"

"""lora-c devices"""

from __future__ import annotations

import click

from .json_output import json_option, print_json
from .options import Command


@click.command("devices", cls=Command, short_help="List what models can compute on.")
@json_option
def command(as_json: bool) -> None:
    """The devices that --device takes, and why others cannot be used."""
    from ..model.device_list import devices, memory_of

    found = devices()
    memory = {device.name: memory_of(device) for device in found}
    if as_json:
        print_json({"devices": [vars(d) | {"usable": d.usable, "memory": memory[d.name]} for d in found]})
        return
    from rich.table import Table
    from rich.text import Text

    from ..display.console import TextConsole
    from ..display.printable import printable

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for device in found:
        table.add_row(
            Text(printable(device.name), style="bold" if device.usable else ""), Text(device.description, overflow="fold")
        )
        if said := _in_words(memory[device.name]):
            table.add_row("", said)
        if not device.usable:
            table.add_row("", Text(f"cannot be used: {printable(device.reason)}", overflow="fold"))
    TextConsole().print(table)


def _in_words(memory: dict[str, int | None] | None) -> str:
    if memory is None or memory["free"] is None or memory["total"] is None:
        return ""
    return f"{memory['free'] / 2**30:,.1f} of {memory['total'] / 2**30:,.1f} GiB free"

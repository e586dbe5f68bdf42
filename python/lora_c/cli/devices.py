"""lora-c devices"""

from __future__ import annotations

import click

from .json_output import json_option, print_json
from .options import Command


@click.command("devices", cls=Command, short_help="List what models can compute on.")
@json_option
def command(as_json: bool) -> None:
    """The devices that --device takes, and why others cannot be used."""
    from ..model.device_list import devices

    found = devices()
    if as_json:
        print_json({"devices": [vars(device) | {"usable": device.usable} for device in found]})
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
        if not device.usable:
            table.add_row("", Text(f"cannot be used: {printable(device.reason)}", overflow="fold"))
    TextConsole().print(table)

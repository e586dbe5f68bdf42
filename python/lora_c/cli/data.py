"""What was read as data, in lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..data import Dataset


def describe_data(title: str, data: Dataset, err: bool = True) -> None:
    """Print which files were read and what became of them, and what of their folders was left out."""
    split = f" ({data.files.split})" if data.files.split else ""
    click.echo(f"{title:<9} {data.source}{split}: {data.report()}", err=err)
    rest = data.files.describe_rest()
    if rest:
        click.echo(f"left out  {rest}", err=err)

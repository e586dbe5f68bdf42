"""lora-c completion"""

from __future__ import annotations

import click

from .options import Command


@click.command("completion", cls=Command, short_help="Write the script that completes commands with Tab.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Write a script for SHELL to standard output: Tab then completes commands, flags, their values and paths.

    \b
    bash  lora-c completion bash >> ~/.bashrc
    zsh   lora-c completion zsh >> ~/.zshrc   (after compinit)
    fish  lora-c completion fish > lora-c.fish
          (in ~/.config/fish/completions)
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # the three of the argument come with click
    program = ctx.find_root().command
    click.echo(kind(program, {}, "lora-c", "_LORA_C_COMPLETE").source())

"""The commands, each imported when it runs."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from .addresses import keep_addresses
from .errors import CLOSED_PIPE, DONE, FAILED, INTERRUPTED, USAGE, closed_pipes_pass, flush_output, friendly_errors
from .notices import plain_notices
from .ranks import as_a_rank
from .streams import fit_streams

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "train": ("train", "Fine-tune a model on your data (LoRA, QLoRA, full or head only)."),
    "sweep": ("sweep", "Find the learning rate of a run, by its held-out loss."),
    "compare": ("compare", "Compare methods on your data: full, head, LoRA, QLoRA and others, each in its own process."),
    "generate": ("generate", "Write text from a prompt."),
    "chat": ("chat", "Talk with a model."),
    "serve": ("serve", "Answer over HTTP as OpenAI does: one base, many adapters in one batch, and a page."),
    "classify": ("classify", "Say which label a text has, with a classifier."),
    "eval": ("evaluate", "Loss, perplexity and scores of tasks on your data; base and adapter side by side."),
    "data": ("data", "Show what a model will see of your data: examples, lengths, what is cut, steps."),
    "plan": ("plan", "Say what a run would take before it starts: parameters, memory, work, time, what fits."),
    "merge": ("merge", "Fold an adapter into its base model."),
    "export": ("export", "Write an adapter or a model in another format."),
    "inspect": ("inspect", "Say what a file or folder is, and what is unsupported in it."),
    "quantize": ("quantize", "Write a model folder in 4-bit NF4 or another type."),
    "bench": ("bench", "Speed and memory of a training step on this machine; --profile says where its time goes."),
    "devices": ("devices", "List what models can compute on, and why other devices cannot be used."),
    "replay": ("replay", "Compute a step again that a run has kept because it was not finite."),
    "plot": ("plot", "Draw the loss of training runs, one or several beside each other."),
    "demo": ("demo", "Teach the model that ships a task it cannot do, in about a minute."),
    "completion": ("completion", "Complete commands, flags and paths with Tab in bash, zsh or fish."),
}


class LazyGroup(click.Group):
    """Imports the module of a command only when the command runs, so that --help answers at once, and so does Tab."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        from importlib import import_module

        command = import_module(f".{COMMANDS[name][0]}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with closed_pipes_pass():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with closed_pipes_pass():
            return super().invoke(ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]):  # type: ignore[no-untyped-def]
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            error.message += f" Did you mean {near[0]!r}?" if near else f" Expected one of: {', '.join(COMMANDS)}."
            raise


_EXIT_CODES = f"""Exit codes: {DONE} done; {FAILED} refused or failed; {USAGE} a flag, argument or key that is wrong or
missing; {INTERRUPTED} Ctrl-C; {CLOSED_PIPE} nobody reads the output."""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="lora-c")
def cli() -> None:
    """Fine-tune language models with LoRA and QLoRA on ordinary machines.

    \b
    lora-c train --model MODEL --data chat.jsonl --output out
    lora-c generate --model MODEL --adapter out "Hello"
    """


def run() -> None:
    """Run the command line and exit: one line for every expected error, and its exit code."""
    fit_streams()
    keep_addresses()
    with friendly_errors():
        with plain_notices(), as_a_rank():
            status = _run()
        flush_output()
    sys.exit(status)


def _run() -> int:
    """Run a command and return its exit status; click alone would turn Ctrl-C into status 1."""
    try:
        status = cli(prog_name="lora-c", standalone_mode=False)
    except click.exceptions.Abort as error:
        raise error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else KeyboardInterrupt from None
    except click.ClickException as error:
        with suppress(OSError):  # a log that is full or gone changes no exit code
            error.show()
        return error.exit_code
    return status if isinstance(status, int) else DONE

"""The flags of `lora-c eval --task`, and with which tasks each has a meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..configs import GenerationConfig
from ..configs.task_names import TASKS, WRITTEN
from ..errors import ConfigError
from .flag_types import TextList
from .flags import config_options
from .occupied import held_by_an_output
from .paths import BaselinePath, OutputPath

F = TypeVar("F", bound=Callable[..., Any])
_GENERATION = ("max_new_tokens", "stop_strings")
_MEANT_FOR: dict[str, tuple[str, ...]] = {
    "normalize": ("exact-match", "f1"),
    "apply_chat_template": (*WRITTEN, "multiple-choice"),
    **dict.fromkeys(_GENERATION, WRITTEN),
    "max_seq_length": ("perplexity",),
    "batch_tokens": ("perplexity", "multiple-choice"),
}


class _Steps(TextList):
    name = "A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        return [found] if isinstance(found, str) else list(found)


def task_flags(function: F) -> F:
    """Add --task and what belongs to it."""
    others = tuple(name for name in GenerationConfig.model_fields if name not in _GENERATION)
    options = (
        click.option(
            "--task", type=click.Choice(TASKS), metavar="NAME", help=f"What is measured: one of {', '.join(TASKS)}."
        ),
        click.option(
            "--baseline", type=BaselinePath(), is_flag=False, flag_value="base", default=None,
            help="Measure the base without the adapter, or another adapter, too, and their difference.  [alone: base]",
        ),
        click.option(
            "--normalize", type=_Steps(),
            help="What does not count in exact-match and f1: case, punctuation, articles, space; number: only the last "
            "number counts; or squad, gsm8k, none.  [default: space; of f1: squad]",
        ),
        click.option(
            "--apply-chat-template", is_flag=True, help="Ask prompts that are texts as a user's turn in the chat template."
        ),
        click.option(
            "--output", type=OutputPath(lambda name: False, held=held_by_an_output), metavar="FILE",
            help="Write what was found of each example, as JSON lines.",
        ),
        click.option(
            "--resamples", type=click.IntRange(2), default=1000, show_default=True, help="Sets that the interval is made of."
        ),
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of their draws."),
        config_options(GenerationConfig, "Generation", skip=others),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def task_of(own: Mapping[str, Any]) -> str | None:
    """The task that is meant: of --task, or perplexity where something that belongs to a task is asked for."""
    asked = own.get("baseline") or own.get("output")
    task: str | None = own.get("task") or ("perplexity" if asked else None)
    return task


def refuse_idle_flags(ctx: click.Context, own: Mapping[str, Any], task: str | None) -> None:
    """Refuse flags that would change nothing.

    Raises
    ------
    ConfigError
        With the tasks that one has a meaning for.
    """
    given = [
        name for name in own if ctx.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    ]
    for name in given:
        tasks = _MEANT_FOR.get(name)
        idle = tasks is not None and task not in tasks and (task is not None or name not in ("max_seq_length", "batch_tokens"))
        if tasks is not None and idle and own[name] not in (False, None, ()):
            raise ConfigError(f"{name}: expected --task {' or '.join(tasks)} beside it, got {task or 'none'}; leave it out")
        if name in ("resamples", "seed") and not own.get("baseline"):
            raise ConfigError(f"{name}: expected --baseline beside it, got none; nothing is drawn without it")
    if own.get("baseline") and not own.get("adapter"):
        raise ConfigError("baseline: expected --adapter (or --run) beside it, got none; the base alone has nothing to compare")

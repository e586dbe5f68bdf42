"""The options that say what is read as data, for every command that reads some, and what was read, in lines for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..configs.training import PRECISIONS
from ..errors import ConfigError, shorten
from ..notices import tell
from .flag_types import Literals, Pairs
from .flags import from_environment
from .paths import InputPath, InputPaths, flatten

if TYPE_CHECKING:
    from ..configs import TrainConfig
    from ..data import Dataset
    from ..data.reading_questions import Questions
    from ..text.tokenizer import Tokenizer

F = TypeVar("F", bound=Callable[..., Any])
_MOST_SKIPPED = 100  # that are listed for people; --json lists all
_KINDS = ".jsonl, .json, .csv, .tsv, .parquet or .txt; several, a folder, a pattern in quotes, or - for standard input."


class Columns(Pairs):
    """NAME=COLUMN pairs, or a mapping from a file."""

    name = "NAME=COLUMN,..."
    numbers = False

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..data.columns import check_columns

        return check_columns(value if isinstance(value, str) else {str(key): str(item) for key, item in dict(value).items()})


def data_option(help: str = "", required: bool = False) -> Callable[[F], F]:
    """Add --data."""
    return click.option(
        "--data", type=InputPaths(), multiple=True, callback=flatten, required=required, help=f"{help or 'Data'}: {_KINDS}"
    )


def training_data_options(function: F) -> F:
    """Add --data, --eval-data and --limit."""
    function = click.option("--limit", type=int, help="Read at most this many training examples.")(function)
    function = click.option(
        "--eval-data", type=InputPaths(), multiple=True, callback=flatten,
        help="Held-out data; default: --val-fraction of the data, or its validation split.",
    )(function)  # fmt: skip
    return data_option("Training data")(function)


def reading_options(function: F) -> F:
    """Add --columns, --skip-bad and --chat-template."""
    function = chat_template_option(function)
    function = click.option(
        "--skip-bad", type=click.IntRange(0), metavar="N", help="Leave out up to N bad examples, which are listed."
    )(function)
    return columns_option(function)


def columns_option(function: F) -> F:
    """Add --columns."""
    text = "Which column of the data is what: prompt=question,completion=answer."
    return click.option("--columns", type=Columns(), help=text)(function)


def chat_template_option(function: F) -> F:
    """Add --chat-template."""
    text = "Jinja file with the chat template to use in the place of the model's own."
    return click.option("--chat-template", type=InputPath(), metavar="FILE", help=text)(function)


def device_option(function: F) -> F:
    """Add --device."""
    text = "What to compute on: a name that `lora-c devices` lists.  [default: LORA_C_DEVICE of the environment, else cpu]"
    return click.option("--device", type=str, metavar="NAME", default=None, help=text)(function)


def precision_option(otherwise: str) -> Callable[[F], F]:
    """Add --precision to a command that computes without a configuration; otherwise: what holds where it is not given."""
    text = f"exact, fast or int8, as in train.  [default: LORA_C_PRECISION of the environment, else {otherwise}]"
    default = from_environment("precision", PRECISIONS)
    return click.option("--precision", type=Literals(PRECISIONS), metavar="NAME", default=default, help=text)


def reading(own: dict[str, Any]) -> dict[str, Any]:
    """What `load_files` is told of these options."""
    return {"columns": own.get("columns"), "skip_bad": own.get("skip_bad") or 0}


def open_data(
    own: dict[str, Any], tokenizer: Tokenizer, config: TrainConfig, err: bool = True
) -> tuple[Dataset, Dataset | None, dict[str, int]]:
    """Training data, held-out data (given, a share of the training data, or the folder's validation split), and counts."""
    from ..data import FoundFiles, find_files, load_files

    if own.get("eval_data") and config.val_fraction > 0:
        raise ConfigError("val_fraction: expected it unset beside eval_data, got both; leave one of them out")
    found = find_files(own["data"])
    held_out = None
    if own.get("eval_data"):
        held_out = find_files(own["eval_data"], ("validation", "test", "train"))
    elif config.val_fraction == 0 and "validation" in found.others:
        held_out = FoundFiles(found.others.pop("validation"), "validation")
    options: dict[str, Any] = {"max_seq_length": config.max_seq_length} | reading(own)
    data = load_files(found, tokenizer, limit=own.get("limit"), **options)
    describe_data("data", data, err)
    if data.n_plain_prompts and tokenizer.chat_template is not None:
        tell(
            f"data: {data.n_plain_prompts:,} of {data.n_examples:,} prompts are trained as they stand, without the model's "
            "chat template, which generate and chat put around a prompt: give --raw to generate, or write them as 'messages'"
        )
    counts = {"examples": data.n_examples, "cut": data.n_truncated, "left_out_without_loss": data.n_without_loss}
    counts |= {"skipped": len(data.skipped)}
    if held_out is None:
        return (*_split(data, config, err), counts) if config.val_fraction > 0 else (data, None, counts)
    eval_data = load_files(held_out, tokenizer, **options)
    describe_data("held out", eval_data, err)
    both = {path.resolve() for path in found.taken} & {path.resolve() for path in held_out.taken}
    if both:
        tell(f"eval_data: {shorten(sorted(path.name for path in both))} is trained on too; its loss says nothing of new text")
    return data, eval_data, counts


def _split(data: Dataset, config: TrainConfig, err: bool) -> tuple[Dataset, Dataset]:
    train_data, eval_data = data.split(config.val_fraction, config.seed)
    share = f"val_fraction {config.val_fraction:g}"
    click.echo(f"split     {len(eval_data):,} of {len(data):,} sequences held out ({share})", err=err)
    return train_data, eval_data


def describe_data(title: str, data: Dataset, err: bool = True) -> None:
    """Print which files were read and what became of them, what of their folders was left out, and what was skipped."""
    split = f" ({data.files.split})" if data.files.split else ""
    click.echo(f"{title:<9} {data.source}{split}: {data.report()}", err=err)
    rest = data.files.describe_rest()
    if rest:
        click.echo(f"left out  {rest}", err=err)
    list_skipped(data.skipped, err)


def describe_questions(source: str, questions: Questions, err: bool = True) -> None:
    """The same of what is asked for a task."""
    n = len(questions.asked)
    click.echo(f"{'data':<9} {source}: {n:,} {'example' if n == 1 else 'examples'}", err=err)
    list_skipped(questions.skipped, err)


def list_skipped(skipped: Sequence[str], err: bool) -> None:
    """A line for each bad example that was left out."""
    for i, line in enumerate(skipped[:_MOST_SKIPPED]):
        click.echo(f"{'skipped' if i == 0 else '':<9} {line}", err=err)
    if len(skipped) > _MOST_SKIPPED:
        click.echo(f"{'':<9} … and {len(skipped) - _MOST_SKIPPED:,} more", err=err)

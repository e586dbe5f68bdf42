"""lora-c demo"""

from __future__ import annotations

import click

from .json_output import json_option, print_json
from .options import Command
from .paths import output_of_a_demo, refuse_inputs


@click.command("demo", cls=Command, short_help="Teach the model that ships a new task.")
@click.option(
    "--out", "output_dir", type=output_of_a_demo("demo-output"), default="demo-output", show_default=True,
    help="Folder for adapter and plot.",
)  # fmt: skip
@click.option("--short", is_flag=True, help="A few steps only: shows that everything works, not that it learns.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Seed of task and training.")
@json_option
def command(output_dir: str, short: bool, seed: int, as_json: bool) -> None:
    """QLoRA fine-tune the base model that ships on questions about small stories, and show what it learned.

    The base has read such stories but has never seen a question. Training and held-out examples share no question.
    Ends with status 1 when the model did not learn the task, or when merging changed an answer.
    """
    from ..checkpoints.model_names import BASE_MODEL
    from ..demo.run import run_demo, shortcoming
    from ..errors import LoraCError

    refuse_inputs("out", output_dir, [("the model that ships", str(BASE_MODEL))])
    summary = run_demo(output_dir, short=short, seed=seed, to_stderr=as_json)
    if as_json:
        print_json(summary)
    missing = shortcoming(summary, short=short)
    if missing:
        raise LoraCError(missing)

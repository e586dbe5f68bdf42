"""lora-c demo"""

from __future__ import annotations

import click

from .options import Command


@click.command("demo", cls=Command, short_help="Teach the model that ships a new task.")
@click.option("--out", "output_dir", type=str, default="demo-output", show_default=True, help="Folder for adapter and plot.")
@click.option("--short", is_flag=True, help="A few steps only: shows that everything works, not that it learns.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the task and of the training.")
def command(output_dir: str, short: bool, seed: int) -> None:
    """QLoRA fine-tune the base model that ships on questions about small stories, and show what it learned.

    The base has read such stories but has never seen a question. Training and held-out examples share no question.
    Ends with status 1 when the model did not learn the task, or when merging changed an answer.
    """
    from ..demo.run import run_demo, shortcoming
    from ..errors import LoraCError

    missing = shortcoming(run_demo(output_dir, short=short, seed=seed), short=short)
    if missing:
        raise LoraCError(missing)

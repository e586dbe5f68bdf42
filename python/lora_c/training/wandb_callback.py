"""Records of a run for Weights & Biases, sent by its own package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .callbacks import TrainerState
from .reporting import Reporter

EXTRA = "pip install 'lora-c[wandb]'"


class WandbCallback(Reporter):
    """Send what a run measures to Weights & Biases, or with WANDB_MODE=offline into its folder in the output folder.

    A run that is resumed goes on as the same one. What wandb reads of the environment (WANDB_PROJECT, WANDB_NAME, …) holds.

    Parameters
    ----------
    project : str, optional
        By default what WANDB_PROJECT says, else lora-c.
    every : int
        Steps between two records of steps.
    config : mapping, optional
        Options of the run, to be shown beside it.

    Raises
    ------
    ConfigError
        The package wandb is not installed.
    """

    name = "wandb"

    def __init__(self, project: str | None = None, every: int = 1, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(every)
        try:
            import wandb
        except ImportError:
            raise ConfigError(f"report_to: expected the package wandb, got an installation without it; {EXTRA}") from None
        if not hasattr(wandb, "init"):  # a folder of that name, as runs of wandb leave one, is imported as an empty package
            raise ConfigError(f"report_to: expected the package wandb, got a folder of that name; {EXTRA}")
        self._wandb: Any = wandb
        self._project, self._config = project, dict(config or {})
        self._run: Any = None

    def _begin(self, state: TrainerState) -> None:
        """Begin a run there, or go on with it."""
        self._run = self._wandb.init(
            project=self._project or os.environ.get("WANDB_PROJECT") or "lora-c",
            name=os.environ.get("WANDB_NAME") or state.output_dir.resolve().name,
            dir=str(state.output_dir), id=state.run_id, resume="allow", config=self._config,
            settings=self._wandb.Settings(console="off"),  # what is printed stays this program's
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")  # steps that are done again after a resumption count anew

    def _write(self, values: Mapping[str, float], step: int) -> None:
        """Send the numbers of a step."""
        self._run.log({"step": step, **values})

    def _end(self, state: TrainerState) -> None:
        """End the run there: as one that failed, where it diverged or an error ended it."""
        self._run.finish(exit_code=1 if state.ending in ("diverged", "failed") else 0)
        self._run = None

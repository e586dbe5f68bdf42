"""What a run reports when it has ended, as an object and as a table with its loss curve in a notebook."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display.html_table import html_table
from ..display.loss_curve import loss_curve_svg
from ..runs.history import summary_of
from .skipped_steps import count_skipped

if TYPE_CHECKING:
    from .best import Best


@dataclass
class TrainResult:
    """What a finished (or interrupted) run reports.

    Attributes
    ----------
    steps : int
        Done so far.
    train_loss : float
        Mean over the last tenth of the steps.
    eval_loss : float or None
        The held-out loss of `evaluation`.
    tokens_per_second, elapsed_seconds : float
        Of this call of `train`.
    peak_memory_bytes : int
        The most that lora-c has held while this run was under way; what earlier passes of the model had kept was freed first.
    interrupted : bool
        Whether steps are left.
    unsaved : list of str
        Why the latest checkpoints could not be written; empty once one was.
    signal : int or None
        The signal that interrupted it.
    best : Best or None
        The best evaluation of a run that looks for it (`load_best_model_at_end`, `early_stopping_patience`).
    ends_with_best : bool
        Whether the model has the parameters of `best`.
    history : list of dict
        A record for each step and each evaluation.
    ranks : list of dict
        What each of the processes that trained together has done: rank, host, threads, micro_batches, tokens, and seconds
        in its passes and in the exchange of gradients.
    """

    steps: int
    train_loss: float
    eval_loss: float | None
    tokens_per_second: float
    elapsed_seconds: float
    peak_memory_bytes: int
    interrupted: bool = False
    unsaved: list[str] = field(default_factory=list)
    signal: int | None = None
    best: Best | None = None
    ends_with_best: bool = False
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    ranks: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def skipped(self) -> int:
        """Steps that changed nothing, because their numbers were not fit for it."""
        return count_skipped(self.history)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The record of the last evaluation, or of the best one where the model has its parameters; empty: there was none."""
        records = [record for record in self.history if "eval_loss" in record]
        if self.best is not None and self.ends_with_best:
            records = [record for record in records if record["step"] == self.best.step]
        return records[-1] if records else {}

    @classmethod
    def of(cls, history: list[dict[str, Any]], **measured: Any) -> TrainResult:
        """Make a result with the losses of a history.

        Parameters
        ----------
        history : list of dict
            The records of a run; copied, because it goes on when the run does.
        **measured
            The other attributes.
        """
        loss = summary_of(history)["train_loss"]
        result = cls(
            train_loss=float("nan") if loss is None else loss,
            eval_loss=None,
            history=[dict(record) for record in history],
            **measured,
        )
        result.eval_loss = result.evaluation.get("eval_loss")
        return result

    def stopped_line(self, output_dir: Path | None) -> str:
        """What somebody reads who has stopped the run: where it stands, whether that is saved, how it goes on.

        output_dir is None of a run of which nothing is kept.
        """
        where = f"stopped after step {self.steps}{'' if self.interrupted else ', the last one'}"
        if output_dir is None:
            return f"{where}, of which nothing is kept"
        saved = f"could not be saved ({self.unsaved[-1]})" if self.unsaved else f"is saved in {output_dir}"
        return f"{where}, which {saved}" + ("; train() goes on from there" if self.interrupted else "")

    def _repr_html_(self) -> str:
        rows = {
            "steps": f"{self.steps:,}" + (" (interrupted)" if self.interrupted else ""),
            "training loss": f"{self.train_loss:.4f}",
            "held-out loss": "" if self.eval_loss is None else f"{self.eval_loss:.4f}",
            "best": "" if self.best is None else f"{self.best.metric} {self.best.value:.4f} after step {self.best.step:,}",
            "steps left out": f"{self.skipped:,}" if self.skipped else "",
            "time": f"{self.elapsed_seconds:,.1f} s, {self.tokens_per_second:,.0f} tokens/s",
            "peak memory": f"{self.peak_memory_bytes / 2**20:,.1f} MiB",
            "not saved": "; ".join(self.unsaved),
        }
        known = {label: text for label, text in rows.items() if text}
        return f"<div>{html_table('TrainResult', known)}{loss_curve_svg(self.history)}</div>"

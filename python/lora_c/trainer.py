"""The training loop: full, head-only, LoRA and QLoRA are the same loop over different parameters."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import _core
from .batching import PackedBatch, evaluation_batches, step_batches, steps_per_epoch
from .configs import TrainConfig
from .ends import tell_untrained_ends
from .errors import ConfigError
from .files import write_text
from .interrupt import deferred_interrupt
from .progress import Progress, open_progress
from .schedule import learning_rate
from .training_state import latest_checkpoint, load_training_state, prune_checkpoints, save_checkpoint

if TYPE_CHECKING:
    from .data import Dataset
    from .model import Model


@dataclass
class TrainResult:
    """What a finished (or interrupted) run reports."""

    steps: int
    train_loss: float
    eval_loss: float | None
    tokens_per_second: float
    elapsed_seconds: float
    peak_memory_bytes: int
    interrupted: bool = False
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)


class Trainer:
    """Train the parameters of ``model`` that require gradients.

    Parameters
        model         with an adapter (LoRA, QLoRA) or loaded with ``trainable="full"`` or ``"head"``
        train_data    Dataset
        config        TrainConfig; its names are those of transformers
        eval_data     Dataset or None
    Notes
        The loss of a step is the sum over all its micro-batches divided by all their tokens with loss, so accumulation
        changes memory and not mathematics. The data order is a function of (seed, step): a resumed run gives the
        same bits as one that was never stopped.
    """

    def __init__(self, model: Model, train_data: Dataset, config: TrainConfig, eval_data: Dataset | None = None) -> None:
        self.model, self.config = model, config
        self.train_data, self.eval_data = train_data, eval_data
        self.parameters = model.trainable_parameters()
        if not self.parameters:
            raise ConfigError(
                "model: expected at least one trainable parameter, got a frozen model; call model.add_adapter(...) or "
                'load it with trainable="full" or "head"'
            )
        tell_untrained_ends(model, train_data)
        self.optimizer = _core.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            no_decay=[p for p in self.parameters if len(p.shape) == 1],
        )
        model.decoder.activation_dtype = config.activation_dtype
        model.decoder.recompute = self._recompute()
        model.decoder.precision = config.precision
        self.output_dir = Path(config.output_dir)
        self.history: list[dict[str, Any]] = []
        self._tokens_before = 0  # by the runs that this one resumes
        self._tokens_seen = 0

    def _recompute(self) -> Literal["none", "layer"]:
        from .memory import choose_recompute, largest_micro_batch

        if self.config.recompute != "auto":
            return self.config.recompute
        return choose_recompute(self.model, largest_micro_batch(self), self.config.memory_limit)

    @property
    def steps_per_epoch(self) -> int:
        per_step = self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        return steps_per_epoch(len(self.train_data), per_step)

    @property
    def total_steps(self) -> int:
        if self.config.max_steps > 0:
            return self.config.max_steps
        return max(1, round(self.steps_per_epoch * self.config.num_train_epochs))

    @property
    def warmup_steps(self) -> int:
        return self.config.warmup_steps or round(self.config.warmup_ratio * self.total_steps)

    def train(self, resume: bool | str | Path = False) -> TrainResult:
        """Run to the last step; Ctrl-C saves a checkpoint and returns. resume: True (latest) or a checkpoint folder."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        first = self._resume(resume) if resume else 0
        self._rewrite_metrics()
        _core.reset_peak_memory()
        self._tokens_before = next((r["tokens"] for r in reversed(self.history) if "tokens" in r), 0)
        self._tokens_seen = 0
        started = time.perf_counter()
        done = first
        with open_progress(self.total_steps, done) as progress, deferred_interrupt() as stop:
            if self.eval_data is not None and first == 0 and self.config.eval_steps:
                self._evaluate_and_log(0, progress)
            while done < self.total_steps and not stop.requested:
                self._one_step(done, started, progress)
                done += 1
                self._periodic(done, progress)
            interrupted = done < self.total_steps
            if interrupted:
                progress.message(f"stopped at step {done}; saving a checkpoint to resume from")
                save_checkpoint(self, done)
            elif self.eval_data is not None and not self._logged_eval(done):
                self._evaluate_and_log(done, progress)
        return self._result(done, time.perf_counter() - started, interrupted)

    def evaluate(self, dataset: Dataset | None = None) -> float:
        """Mean cross entropy per token with loss."""
        dataset = dataset if dataset is not None else self.eval_data
        if dataset is None:
            raise ConfigError("eval_data: expected a dataset, got none; give eval_data or val_fraction")
        return evaluate_loss(self.model, dataset, max_tokens=self.config.eval_batch_tokens)

    def _one_step(self, step: int, started: float, progress: Progress) -> None:
        config = self.config
        epoch, batches = step_batches(
            self.train_data,
            step,
            batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            seed=config.seed,
        )
        total_weight = sum(batch.total_weight for batch in batches)
        self.optimizer.zero_grad()
        loss = 0.0
        for i, batch in enumerate(batches):
            loss += self._forward_backward(batch, 1.0 / total_weight, step * config.gradient_accumulation_steps + i)
        rate = learning_rate(
            step,
            peak=config.learning_rate,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            kind=config.lr_scheduler_type,
        )
        grad_norm = self.optimizer.step(lr=rate, max_grad_norm=config.max_grad_norm or None)
        self._tokens_seen += sum(batch.n_tokens for batch in batches)
        elapsed = time.perf_counter() - started
        record = {
            "step": step + 1,
            "epoch": round(epoch + ((step % self.steps_per_epoch) + 1) / self.steps_per_epoch, 4),
            "loss": loss / total_weight,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "tokens": self._tokens_before + self._tokens_seen,
            "tokens_per_second": round(self._tokens_seen / max(elapsed, 1e-9), 1),
            "elapsed_seconds": round(elapsed, 3),
            "peak_memory_bytes": _core.memory_report()["total"]["peak"],
        }
        progress.step(record)
        self.history.append(record)
        if (step + 1) % config.logging_steps == 0 or step + 1 == self.total_steps:
            self._write_metrics(record)

    def _forward_backward(self, batch: PackedBatch, grad_scale: float, dropout_step: int) -> float:
        return self.model.decoder.forward_backward(
            batch.input_ids,
            batch.cu_seqlens,
            batch.targets,
            batch.loss_weight,
            grad_scale=grad_scale,
            dropout_step=dropout_step,
        )

    def _periodic(self, done: int, progress: Progress) -> None:
        config = self.config
        if self.eval_data is not None and config.eval_steps and done % config.eval_steps == 0:
            self._evaluate_and_log(done, progress)
        if config.save_steps and done % config.save_steps == 0 and done < self.total_steps:
            save_checkpoint(self, done)
            prune_checkpoints(self.output_dir, config.save_total_limit)

    def _evaluate_and_log(self, done: int, progress: Progress) -> None:
        loss = self.evaluate()
        record = {"step": done, "eval_loss": loss}
        self.history.append(record)
        self._write_metrics(record)
        progress.evaluation(record)

    def _logged_eval(self, done: int) -> bool:
        return any(r.get("step") == done and "eval_loss" in r for r in self.history)

    def _write_metrics(self, record: dict[str, Any]) -> None:
        with open(self.output_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _rewrite_metrics(self) -> None:
        """Start the file with what this run builds on: nothing, or the history of the checkpoint that it resumes from."""
        write_text(self.output_dir / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in self.history))

    def _resume(self, resume: bool | str | Path) -> int:
        folder = latest_checkpoint(self.output_dir) if resume is True else Path(resume)
        if folder is None:
            return 0
        return load_training_state(self, folder)

    def _result(self, steps: int, elapsed: float, interrupted: bool) -> TrainResult:
        losses = [r["loss"] for r in self.history if "loss" in r]
        evals = [r["eval_loss"] for r in self.history if "eval_loss" in r]
        tail = losses[-max(1, len(losses) // 10) :]
        return TrainResult(
            steps=steps,
            train_loss=sum(tail) / len(tail) if tail else float("nan"),
            eval_loss=evals[-1] if evals else None,
            tokens_per_second=self._tokens_seen / max(elapsed, 1e-9),
            elapsed_seconds=elapsed,
            peak_memory_bytes=_core.memory_report()["total"]["peak"],
            interrupted=interrupted,
            history=self.history,
        )


def evaluate_loss(model: Model, dataset: Dataset, *, max_tokens: int = 2048) -> float:
    """Mean cross entropy over every token with loss in ``dataset``."""
    loss = weight = 0.0
    for batch in evaluation_batches(dataset, max_tokens):
        loss += model.decoder.loss(batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight)
        weight += batch.total_weight
    return loss / weight

"""The training loop: full, head-only, LoRA and QLoRA are the same loop over different parameters."""

from __future__ import annotations

import math
import time
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import _core
from ._core import PassStopped
from .batching import PackedBatch, evaluation_batches, step_batches, steps_per_epoch, total_steps
from .checkpoint_schedule import CheckpointSchedule, expected_seconds
from .configs import TrainConfig
from .data.fits import fit_to_model
from .digests import data_digest, model_digest
from .ends import tell_missing_ends, tell_untrained_ends
from .errors import ConfigError, DivergenceError, LoraCError
from .interrupt import deferred_interrupt
from .leaving import Leaving
from .metrics import MetricsFile
from .notices import tell
from .os_errors import make_folder
from .progress import Progress, open_progress
from .resume import Run, check_same_run
from .run_checkpoints import find_checkpoint, latest_checkpoint, prune_checkpoints, read_position
from .run_checks import RunOptions, check_run
from .run_settings import check_same_parameters, run_settings
from .safetensors_file import find_non_finite
from .schedule import learning_rate
from .training_state import is_finite, load_training_state, save_checkpoint

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
    unsaved: list[str] = field(default_factory=list)  # why the latest checkpoints could not be written; empty once one was
    signal: int | None = None  # what interrupted it
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
        config = config.frozen_copy()
        self.model, self.config = model, config
        self.parameters = model.trainable_parameters()
        if not self.parameters:
            raise ConfigError(
                "model: expected at least one trainable parameter, got a frozen model; call model.add_adapter(...) or "
                'load it with trainable="full" or "head"'
            )
        check_run(RunOptions(config, model=model, has_eval_data=eval_data is not None))
        longest = config.max_seq_length if "max_seq_length" in config.model_fields_set else None
        self.train_data = fit_to_model(train_data, model, "train_data", longest)
        self.eval_data = eval_data if eval_data is None else fit_to_model(eval_data, model, "eval_data", longest)
        check_run(RunOptions(config, total_steps=self.total_steps))
        tell_untrained_ends(model, self.train_data)
        tell_missing_ends(model, self.train_data)
        self.optimizer = _core.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            no_decay=[p for p in self.parameters if len(p.shape) == 1],
        )
        self.recompute: Literal["none", "layer"] = "none"
        with self.settings():
            self.recompute = self._recompute()
        self.output_dir = Path(config.output_dir)
        self.history: list[dict[str, Any]] = []
        self.run_id = uuid.uuid4().hex
        self.checkpoints: list[int] = []  # steps of those that this run has written
        self._metrics = MetricsFile(self.output_dir)
        self._unsaved: list[str] = []
        self._last_saved: int | None = None
        self.resumed_at = 0  # the step that the next call of `train` goes on from
        self._tokens_before = 0  # by the runs that this one resumes
        self._tokens_seen = 0

    def settings(self) -> AbstractContextManager[None]:
        """Set the decoder as this run has it, while a block runs."""
        return run_settings(self.model.decoder, self.config, self.recompute)

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
        return total_steps(len(self.train_data), self.config)

    @property
    def warmup_steps(self) -> int:
        return self.config.warmup_steps or math.ceil(self.total_steps * self.config.warmup_ratio)

    def train(self, resume: bool | str | Path = False, allow_changes: bool = False) -> TrainResult:
        """Run to the last step and leave a checkpoint of it; Ctrl-C, SIGTERM and SIGHUP save a checkpoint and return.

        Parameters
            resume         True (the latest checkpoint in the output folder), "auto" (the same; start where there is none), or
                           a checkpoint folder
            allow_changes  resume although what changes the result has changed (docs/RESUME.md)
        Raises
            CheckpointError  there is nothing to resume from, it is damaged, or it is another run's
            DivergenceError  a loss or gradient is not finite; the last finite state is saved and named
        """
        check_same_parameters(self.model, self.parameters)
        first = self.resume_from(resume, allow_changes) if resume else self.resumed_at
        make_folder(self.output_dir)
        self._metrics.start(self.history)
        _core.reset_peak_memory()
        self._tokens_before = next((r["tokens"] for r in reversed(self.history) if "tokens" in r), 0)
        self._tokens_seen = 0
        started = time.perf_counter()
        done, self._last_saved = first, None
        self._schedule = CheckpointSchedule(self.config.save_steps, self.total_steps, expected_seconds(self._state_bytes()))
        with self.settings(), open_progress(self.total_steps, done) as progress, deferred_interrupt() as stop:
            self._leaving = Leaving(stop, self.model.decoder, progress.message)
            try:
                if self.config.eval_steps and done % self.config.eval_steps == 0:
                    self._evaluate_and_log(done, progress)  # at the start, or where a run was stopped in the middle of it
                while done < self.total_steps and not stop.requested:
                    try:
                        self._one_step(done, started, progress)
                    except PassStopped:  # the state is the one after the last whole step
                        self.optimizer.zero_grad()
                        break
                    done += 1
                    self._periodic(done, progress)
                interrupted = done < self.total_steps
                if not interrupted:
                    self._evaluate_and_log(done, progress)
                self._check_finite(done)
                if interrupted:
                    progress.message(f"stopped at step {done}; saving a checkpoint to resume from")
                if (interrupted or done > first) and self._last_saved != done:
                    self._save_checkpoint(done)
            except DivergenceError as error:
                raise self._divergence(error, done) from None
            finally:
                self._leaving.end()
        self.model.decoder.free_activations()
        self.resumed_at = done  # another call goes on from here
        result = self._result(done, time.perf_counter() - started, interrupted)
        result.signal = stop.number
        return result

    def run(self) -> Run:
        """What decides the result of this run, as it is written to checkpoints."""
        return Run.of(self)

    @cached_property
    def data_digest(self) -> str:
        """The digest of the training data."""
        return data_digest(self.train_data)

    @cached_property
    def digests(self) -> tuple[str, str]:
        """Of the training data, and of the model without what is trained of it."""
        return self.data_digest, model_digest(self.model)

    def resume_from(self, resume: bool | str | Path, allow_changes: bool = False) -> int:
        """Take up a checkpoint, as `train` does, and return the number of steps that it has done; `train()` goes on there."""
        folder = find_checkpoint(self.output_dir, resume)
        if folder is None:
            return 0
        position = read_position(folder)
        check_same_run(self.run(), position, allow_changes)
        load_training_state(self, position)
        same_place = folder.resolve().parent == self.output_dir.resolve()
        self.run_id, self.checkpoints = position.run_id or self.run_id, position.written if same_place else []
        self.resumed_at = position.step
        return position.step

    def _check_finite(self, done: int) -> None:
        """Nothing is saved that could not be resumed from."""
        if not is_finite(self):
            what = "parameters" if any(find_non_finite(p.data) for p in self.parameters) else "moments"
            raise DivergenceError(f"expected finite {what} after step {done}, got NaN or infinity")

    def _save_checkpoint(self, done: int) -> None:
        """A checkpoint that cannot be written does not end the run: its result is still to come, and it is tried again."""
        try:
            self.run()  # the digests are made once, and do not count as its time
            started = time.perf_counter()
            with self._leaving.during("saving"):
                save_checkpoint(self, done)
        except (LoraCError, MemoryError) as error:
            self._schedule.failed()
            self._unsaved.append(f"step {done}: {error}")
            tell(f"no checkpoint of step {done}: {error}")
            return
        self._last_saved = done
        self._unsaved.clear()
        self._schedule.written(time.perf_counter() - started)
        self.checkpoints = prune_checkpoints(self.output_dir, self.run_id, self.checkpoints, self.config.save_total_limit)

    def _state_bytes(self) -> int:
        """Of a checkpoint: parameters and two moments, and the parameters again in the adapter's format."""
        return 4 * 4 * sum(parameter.size for parameter in self.parameters)

    def _divergence(self, error: DivergenceError, done: int) -> DivergenceError:
        """The error with the way out, after the last finite state has been saved."""
        if done and done not in self.checkpoints and is_finite(self):
            self._save_checkpoint(done)
        last = latest_checkpoint(self.output_dir) if self.checkpoints else None
        state = f"the last finite state is in {last}" if last else "no finite state but the model's own is left"
        return DivergenceError(f"training: {error}; {state}; start again with a smaller learning rate or a longer warm-up")

    def evaluate(self, dataset: Dataset | None = None) -> float:
        """Mean cross entropy per token with loss."""
        dataset = dataset if dataset is not None else self.eval_data
        if dataset is None:
            raise ConfigError("eval_data: expected a dataset, got none; give eval_data or val_fraction")
        with self.settings():
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
        with self._leaving.during("step"):
            for i, batch in enumerate(batches):
                loss += self._forward_backward(batch, 1.0 / total_weight, step * config.gradient_accumulation_steps + i)
        if not math.isfinite(loss):
            raise DivergenceError(f"expected a finite loss at step {step + 1}, got {loss}")
        rate = learning_rate(
            step,
            peak=config.learning_rate,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            kind=config.lr_scheduler_type,
        )
        try:  # it refuses a gradient that is not finite before it changes a parameter
            grad_norm = self.optimizer.step(lr=rate, max_grad_norm=config.max_grad_norm or None)
        except ValueError as error:
            got = str(error).partition("got ")[2].partition(";")[0]
            raise DivergenceError(f"expected finite gradients at step {step + 1}, got {got}") from None
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
            self._metrics.append(record)

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
        if config.eval_steps and done % config.eval_steps == 0:
            self._evaluate_and_log(done, progress)
        if done < self.total_steps and self._schedule.is_due(done):
            self._check_finite(done)
            self._save_checkpoint(done)

    def _evaluate_and_log(self, done: int, progress: Progress) -> None:
        """Once after each step where it is asked for; a stop in the middle of it leaves no record."""
        if self.eval_data is None or self._logged_eval(done):
            return
        try:
            with self._leaving.during("evaluation"):
                loss = self.evaluate()
        except PassStopped:
            return
        if not math.isfinite(loss):
            raise DivergenceError(f"expected a finite held-out loss after step {done}, got {loss}")
        record = {"step": done, "eval_loss": loss}
        self.history.append(record)
        self._metrics.append(record)
        progress.evaluation(record)

    def _logged_eval(self, done: int) -> bool:
        return any(r.get("step") == done and "eval_loss" in r for r in self.history)

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
            unsaved=self._unsaved,
            history=self.history,
        )


def evaluate_loss(model: Model, dataset: Dataset, *, max_tokens: int = 2048) -> float:
    """Mean cross entropy over every token with loss in ``dataset``; what is beyond the context is cut, and told."""
    if max_tokens < 1:
        raise ConfigError(f"max_tokens: expected 1 token or more in a batch, got {max_tokens}")
    dataset = fit_to_model(dataset, model, "dataset")
    loss = weight = 0.0
    for batch in evaluation_batches(dataset, max_tokens):
        loss += model.decoder.loss(batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight)
        weight += batch.total_weight
    return loss / weight

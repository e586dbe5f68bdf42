"""The training loop: full, head-only, LoRA and QLoRA are the same loop over different parameters."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import _core
from .._core import PassStopped
from ..checkpoints.safetensors_file import find_non_finite
from ..configs import TrainConfig
from ..data.batching import PackedBatch, evaluation_batches, step_batches, steps_per_epoch, total_steps
from ..data.fits import fit_to_model
from ..display.progress import Progress, open_progress
from ..errors import ConfigError, DivergenceError, LoraCError
from ..files.os_errors import make_folder
from ..foreign_names import OF_TRAINER, missing
from ..notices import tell
from ..runs.checkpoints import find_checkpoint, latest_checkpoint, prune_checkpoints, read_position, refuse_other_run
from ..runs.digests import data_digest, model_digest
from ..runs.lock import run_lock
from ..runs.metrics import MetricsFile
from ..runs.resume import Run, check_same_run
from ..text.ends import tell_missing_ends, tell_untrained_ends
from .callbacks import Callbacks, Ending, state_of
from .checkpoint_schedule import CheckpointSchedule, expected_seconds
from .held_out import held_out
from .interrupt import deferred_interrupt, is_deferred
from .leaving import Leaving
from .run_checks import RunOptions, check_run
from .run_settings import check_same_parameters, run_settings
from .schedule import learning_rate
from .state import is_finite, load_training_state, save_checkpoint
from .train_result import TrainResult

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model.model import Model


class Trainer:
    """Train the parameters of ``model`` that require gradients.

    Parameters
    ----------
    model : Model
        With an adapter (LoRA, QLoRA), or loaded with ``trainable="full"`` or ``"head"``.
    train_data : Dataset
        What is learned.
    config : TrainConfig, optional
        Its names are those of transformers; it is copied.
    eval_data : Dataset, optional
        Held-out data; with ``val_fraction`` it is split off the training data.
    callbacks : iterable
        Objects with some of the methods of `lora_c.Callback`.

    Notes
    -----
    The model keeps no setting of a run: precision, recompute and the type of activations are what they were when ``train``
    has ended, and the memory of activations is freed. The loss of a step is the sum over all its micro-batches divided by
    all their tokens with loss, so accumulation changes memory and not mathematics. The data order is a function of
    (seed, step): a resumed run gives the same bits as one that was never stopped.
    """

    def __init__(
        self, model: Model, train_data: Dataset, config: TrainConfig | None = None, eval_data: Dataset | None = None,
        *, callbacks: Iterable[Any] = (),
    ) -> None:  # fmt: skip
        if config is not None and not isinstance(config, TrainConfig):
            raise ConfigError(f"config: expected a TrainConfig, got a {type(config).__name__}; make one: TrainConfig(...)")
        config = (config if config is not None else TrainConfig()).frozen_copy()
        self.model, self.config = model, config
        self.callbacks = Callbacks(callbacks)
        self.parameters = model.trainable_parameters()
        if not self.parameters:
            raise ConfigError(
                "model: expected at least one trainable parameter, got a frozen model; call model.add_adapter(...) or "
                'load it with trainable="full" or "head"'
            )
        check_same_parameters(model, self.parameters)
        train_data, eval_data = held_out(train_data, eval_data, config)
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
        self.tokens_before = 0  # by the runs that this one resumes
        self.tokens_seen = 0
        self.started = 0.0
        self._is_running = self._is_torn = False
        self.result: TrainResult | None = None  # of the latest call of `train`

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(missing("Trainer", name, OF_TRAINER))

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

    def train(self, resume: bool | str | Path = False, allow_changes: bool = False, overwrite: bool = False) -> TrainResult:
        """Run to the last step and leave a checkpoint of it.

        Ctrl-C, a notebook's stop button, SIGTERM and SIGHUP save a checkpoint and raise KeyboardInterrupt (a caller that
        collects signals with `deferred_interrupt` gets the result instead). Called again, the run goes on where it was
        stopped; after its last step it refuses.

        Parameters
        ----------
        resume : bool, str or path
            True (the latest checkpoint in the output folder), "auto" (the same; start where there is none), or a checkpoint
            folder.
        allow_changes : bool
            Resume although what changes the result has changed (docs/RESUME.md).
        overwrite : bool
            Begin although the output folder holds the checkpoints of another run.

        Returns
        -------
        TrainResult
            Also kept as ``result``.

        Raises
        ------
        CheckpointError
            There is nothing to resume from, it is damaged, or it is another run's.
        ConfigError
            The run has ended, its parameters are no longer the model's, or the folder is another run's.
        DivergenceError
            A loss or gradient is not finite; the last finite state is saved and named.
        KeyboardInterrupt
            Somebody stopped it; ``result`` has what was reached.

        Notes
        -----
        An error of a callback is raised after a checkpoint was saved.
        """
        with self._one_call(bool(resume)):
            if not (resume or self.resumed_at or overwrite):
                refuse_other_run(self.output_dir, self.run_id)
            make_folder(self.output_dir)
            with run_lock(self.output_dir):
                return self._train(resume, allow_changes)

    @contextmanager
    def _one_call(self, resumes: bool) -> Iterator[None]:
        """What holds for one call of `train`, however it ends: settings of the decoder, the memory of activations."""
        if self._is_running:
            raise ConfigError("train: expected one run of a Trainer at a time, got a second call; let the first one end")
        if self._is_torn and not resumes:
            raise ConfigError(
                "train: expected the state after a whole step, got one that was left in the middle of it; call "
                "train(resume=True), which goes on from the latest checkpoint, or make another Trainer"
            )
        if self.result is not None and not self.result.interrupted and not resumes:
            raise ConfigError(
                f"train: expected a run with steps left, got one that has done all {self.result.steps}; make another Trainer "
                "with the model as it is now, or train(resume=True) with one of more max_steps or num_train_epochs"
            )
        check_same_parameters(self.model, self.parameters)
        if self.model.is_training:
            raise ConfigError("train: expected a model that no other Trainer trains, got one in a run; let that one end")
        self._is_running = self.model.is_training = True
        self.model.decoder.free_activations()  # what earlier passes have kept is not of this run
        try:
            with self.settings():
                yield
        finally:
            self._is_running = self.model.is_training = False
            self.model.decoder.free_activations()

    def _train(self, resume: bool | str | Path, allow_changes: bool) -> TrainResult:
        first = self.resume_from(resume, allow_changes) if resume else self.resumed_at
        self._metrics.start(self.history)
        _core.reset_peak_memory(self.model.device)
        self.tokens_before = next((r["tokens"] for r in reversed(self.history) if "tokens" in r), 0)
        self.tokens_seen = 0
        self.started = started = time.perf_counter()
        done, self._last_saved = first, None
        ending: Ending = "failed"
        self._is_torn = False
        self.callbacks.start()
        collected = is_deferred()  # by whoever calls, and answers
        self._schedule = CheckpointSchedule(self.config.save_steps, self.total_steps, expected_seconds(self._state_bytes()))
        with open_progress(self.total_steps, done) as progress, deferred_interrupt() as stop:
            self._leaving = Leaving(stop, self.model.decoder, progress.message)
            try:
                if self.config.eval_steps and done % self.config.eval_steps == 0:
                    self._evaluate_and_log(done, progress)  # at the start, or where a run was stopped in the middle of it
                while done < self.total_steps and not stop.requested and not self.callbacks.stopping:
                    try:
                        self._one_step(done, started, progress)
                    except PassStopped:  # the state is the one after the last whole step
                        self.optimizer.zero_grad()
                        break
                    done += 1
                    self._call("on_step", done)
                    self._periodic(done, progress)
                interrupted = done < self.total_steps
                if not interrupted:
                    self._evaluate_and_log(done, progress)
                self._check_finite(done)
                if interrupted:
                    progress.message(f"stopped at step {done}; saving a checkpoint to resume from")
                if (interrupted or done > first) and self._last_saved != done:
                    self._save_checkpoint(done, is_last=True)
                ending = self._ending(interrupted, stop.requested)
            except DivergenceError as error:
                ending = "diverged"
                raise self._divergence(error, done) from None
            finally:
                self._leaving.end()
                self.resumed_at = done  # another call goes on from here
                self._is_torn = self.optimizer.step_count != done
                self._call("on_stop", done, ending)
        elapsed = time.perf_counter() - started
        self.result = TrainResult.of(
            self.history, steps=done, tokens_per_second=self.tokens_seen / max(elapsed, 1e-9), elapsed_seconds=elapsed,
            peak_memory_bytes=self._peak_bytes(), interrupted=interrupted, unsaved=list(self._unsaved), signal=stop.number,
        )  # fmt: skip
        self.callbacks.raise_error()
        if stop.requested and not collected:
            raise stop.exception(self.result.stopped_line(self.output_dir))
        return self.result

    def _ending(self, interrupted: bool, stopped: bool) -> Ending:
        if self.callbacks.error is not None:
            return "failed"
        return "interrupted" if stopped else "asked" if interrupted else "finished"

    def _call(self, event: str, done: int, ending: Ending | None = None) -> None:
        """Call the callbacks, which may do anything with the model but exchange what is trained."""
        if not self.callbacks.given:
            return
        self.callbacks.call(event, state_of(self, done, ending))
        if ending is None:
            check_same_parameters(self.model, self.parameters)

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
        check_same_parameters(self.model, self.parameters)
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

    def _save_checkpoint(self, done: int, is_last: bool = False) -> None:
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
        limit = self.config.save_total_limit
        limit = max(limit, 2) if limit and is_last else limit  # the state before the last one stays beside it
        self.checkpoints = prune_checkpoints(self.output_dir, self.run_id, self.checkpoints, limit)
        self._call("on_save", done)

    def _peak_bytes(self) -> int:
        return _core.memory_report(self.model.device)["total"]["peak"]

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
        self.tokens_seen += sum(batch.n_tokens for batch in batches)
        elapsed = time.perf_counter() - started
        record = {
            "step": step + 1,
            "epoch": round(epoch + ((step % self.steps_per_epoch) + 1) / self.steps_per_epoch, 4),
            "loss": loss / total_weight,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "tokens": self.tokens_before + self.tokens_seen,
            "tokens_per_second": round(self.tokens_seen / max(elapsed, 1e-9), 1),
            "elapsed_seconds": round(elapsed, 3),
            "peak_memory_bytes": self._peak_bytes(),
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
        self._call("on_evaluate", done)

    def _logged_eval(self, done: int) -> bool:
        return any(r.get("step") == done and "eval_loss" in r for r in self.history)


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

"""The training loop: full, head-only, LoRA and QLoRA are the same loop over different parameters."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _core
from .._core import PassStopped
from ..comm.communicator import is_main
from ..comm.world import world
from ..configs import TrainConfig
from ..configs.training import Recompute
from ..data.batching import PackedBatch, steps_per_epoch, total_steps
from ..data.fits import fit_to_model
from ..display.progress import Progress, open_progress
from ..errors import ConfigError, DivergenceError
from ..files.os_errors import make_folder
from ..foreign_names import OF_TRAINER, missing
from ..runs.checkpoints import refuse_other_run
from ..runs.digests import data_digest, model_digest
from ..runs.lock import run_lock
from ..runs.metrics import MetricsFile
from ..runs.resume import Run
from ..text.ends import tell_missing_ends, tell_untrained_ends
from .agreement import begin_together
from .best import begin_best, check_metric, is_early_end, keep_if_best, take_best, tell_end
from .callbacks import Callbacks, Ending
from .distributed import Share, is_left, raise_together
from .evaluation import check_score, evaluate_and_log, evaluate_if_due, measure
from .held_out import held_out
from .interrupt import deferred_interrupt, is_deferred
from .leaving import Leaving
from .memory import recompute_of
from .one_call import one_call
from .one_step import one_step
from .optimizers import make_optimizer
from .reporters import reporters
from .run_checks import RunOptions, check_run
from .run_settings import check_same_parameters, run_settings
from .saving import Saving, check_finite
from .skipped_steps import count_skipped
from .state import take_up
from .step_record import peak_bytes
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
        self.comm = world()
        is_first = is_main(self.comm)  # the rank that writes, prints and calls back
        self.callbacks = Callbacks(callbacks if is_first else (), reporters(config) if is_first else [])
        self.parameters = model.trainable_parameters()
        if not self.parameters:
            raise ConfigError(
                "model: expected at least one trainable parameter, got a frozen model; call model.add_adapter(...) or "
                'load it with trainable="full" or "head"'
            )
        check_same_parameters(model, self.parameters)
        train_data, eval_data = held_out(train_data, eval_data, config)
        check_run(RunOptions(config, model=model, has_eval_data=eval_data is not None))
        check_metric(config, model)
        check_score(model, self.parameters)
        longest = config.max_seq_length if "max_seq_length" in config.model_fields_set else None
        self.train_data = fit_to_model(train_data, model, "train_data", longest)
        self.eval_data = eval_data if eval_data is None else fit_to_model(eval_data, model, "eval_data", longest)
        check_run(RunOptions(config, total_steps=self.total_steps))
        if model.labels is None:
            tell_untrained_ends(model, self.train_data)
            tell_missing_ends(model, self.train_data)
        self.optimizer = make_optimizer(config, self.parameters)
        self.share = Share(self.comm, self.parameters, model.architecture.family.layers)
        self.recompute: Recompute = "none"
        with self.settings():
            self.recompute = recompute_of(self)
        self.output_dir = Path(config.output_dir)
        self.history: list[dict[str, Any]] = []
        self.run_id = uuid.uuid4().hex
        self.checkpoints: list[int] = []  # steps of those that this run has written
        self.metrics = MetricsFile(self.output_dir, is_first)
        self.saving = Saving()
        self.resumed_at = 0  # the step that the next call of `train` goes on from
        self.came_from: Path | None = None  # the output folder that it was resumed from, where it is another one
        self.tokens_before = 0  # by the runs that this one resumes
        self.tokens_seen = 0
        self.started = 0.0
        self.is_running = self.is_torn = False
        self.result: TrainResult | None = None  # of the latest call of `train`

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(missing("Trainer", name, OF_TRAINER))

    def settings(self) -> AbstractContextManager[None]:
        """Set the decoder as this run has it, while a block runs."""
        return run_settings(self.model.decoder, self.config, self.recompute)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data."""
        per_step = self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        return steps_per_epoch(len(self.train_data), per_step)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return total_steps(len(self.train_data), self.config)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps in which the learning rate grows."""
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
        with one_call(self, bool(resume)):
            if not (resume or self.resumed_at or overwrite):
                refuse_other_run(self.output_dir, self.run_id)
            if not is_main(self.comm):
                return self._train(resume, allow_changes)
            make_folder(self.output_dir)
            with run_lock(self.output_dir):
                return self._train(resume, allow_changes)

    def _train(self, resume: bool | str | Path, allow_changes: bool) -> TrainResult:
        first = self.resume_from(resume, allow_changes) if resume else self.resumed_at
        begin_together(self)
        self.metrics.start(self.history)
        _core.reset_peak_memory(self.model.device)
        self.tokens_before = next((r["tokens"] for r in reversed(self.history) if "tokens" in r), 0)
        self.tokens_seen = 0
        self.started = started = time.perf_counter()
        done = first
        ending: Ending = "failed"
        self.is_torn = False
        self.callbacks.start()
        collected = is_deferred()  # by whoever calls, and answers
        self.saving.begin(self)
        with open_progress(self.total_steps, done, is_main(self.comm)) as progress, deferred_interrupt() as stop:
            self.leaving = Leaving(stop, self.model.decoder, progress.message, self.saving.keeps)
            try:
                evaluate_if_due(self, done, progress)  # at the start, or where a run was stopped in the middle of it
                begin_best(self, done)
                while done < self.total_steps and not is_left(self, stop) and not is_early_end(self, done):
                    try:
                        self._one_step(done, progress)
                    except PassStopped:  # the state is the one after the last whole step
                        self.optimizer.zero_grad()
                        break
                    done += 1
                    self.callbacks.report(self, "on_step", done)
                    evaluate_if_due(self, done, progress)
                    self.saving.save_if_due(self, done)
                    keep_if_best(self, done)
                left = is_left(self, stop)
                interrupted = done < self.total_steps and (left or not is_early_end(self, done))
                if not interrupted:
                    evaluate_and_log(self, done, progress)
                    keep_if_best(self, done)
                check_finite(self, done)
                tell_end(self, done, interrupted, progress)
                if interrupted or done > first:
                    self.saving.save_last(self, done)
                best, is_best = (None, False) if interrupted else take_best(self, done)
                ending = self.callbacks.ending(interrupted, stop.requested)
            except DivergenceError as error:
                ending = "diverged"
                raise self.saving.divergence(self, error, done) from None
            finally:
                self.leaving.end()
                self.resumed_at = done  # another call goes on from here
                self.is_torn = self.optimizer.step_count + count_skipped(self.history) != done
                self.callbacks.report(self, "on_stop", done, ending)
        elapsed = time.perf_counter() - started
        self.result = TrainResult.of(
            self.history, steps=done, tokens_per_second=self.tokens_seen / max(elapsed, 1e-9), elapsed_seconds=elapsed,
            peak_memory_bytes=peak_bytes(self), interrupted=interrupted, unsaved=list(self.saving.unsaved), signal=stop.number,
            best=best, ends_with_best=is_best, ranks=self.comm.all_gather(self.share.record()),
        )  # fmt: skip
        raise_together(self)
        if stop.requested and not collected:
            raise stop.exception(self.result.stopped_line(self.output_dir if self.saving.keeps else None))
        return self.result

    def run(self) -> Run:
        """What decides the result of this run, as it is written to checkpoints."""
        return Run.of(self)

    @cached_property
    def data_digest(self) -> str:
        """The digest of the training data."""
        return data_digest(self.train_data)

    @cached_property
    def eval_data_digest(self) -> str:
        """The digest of the held-out data."""
        assert self.eval_data is not None
        return data_digest(self.eval_data)

    @cached_property
    def model_digest(self) -> str:
        """The digest of the model without what is trained of it."""
        return model_digest(self.model)

    def resume_from(self, resume: bool | str | Path, allow_changes: bool = False) -> int:
        """Take up a checkpoint, as `train` does, and return the number of steps that it has done; `train()` goes on there.

        Parameters
        ----------
        resume, allow_changes
            As `train` takes them.
        """
        return take_up(self, resume, allow_changes)

    def evaluate(self, dataset: Dataset | None = None) -> float:
        """Mean cross entropy per token with loss; of a classifier its mean loss per text."""
        return self.measure(dataset)["loss"]

    measure = measure

    def _one_step(self, step: int, progress: Progress) -> None:
        one_step(self, step, progress)

    def _forward_backward(self, batch: PackedBatch, grad_scale: float, dropout_step: int) -> float:
        arrays = batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight
        return self.model.decoder.forward_backward(*arrays, grad_scale=grad_scale, dropout_step=dropout_step)

"""The same training in each precision: held-out losses beside the spread between seeds, gradients beside exact ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..configs import LoraConfig, TrainConfig
from ..configs.training import PRECISIONS
from ..data.batching import pack_group, step_groups
from ..errors import ConfigError, DivergenceError
from ..training.trainer import Trainer
from .costs import steps_per_second
from .numerics_record import EXACT, NumericsRecord, PrecisionRun

if TYPE_CHECKING:
    from ..data import Dataset
    from ..model.model import Model

_ADAPTER = "numerics"
_ROUNDING = 2.0**-23  # of the longest gradient: what is no longer is what rounding left of zero

Report = Callable[[str, int], None]  # precision and seed of a run that begins


def precisions_of(model: Model) -> tuple[list[str], dict[str, str]]:
    """The precisions that the model's device has, and by name why the others are left out."""
    decoder, found, left_out = model.decoder, [], {}
    before = decoder.precision
    for precision in PRECISIONS:
        try:
            decoder.precision = precision  # type: ignore[assignment]
        except NotImplementedError as error:
            left_out[precision] = str(error)
        else:
            found.append(precision)
    decoder.precision = before
    return found, left_out


def compare_precisions(
    model: Model, train_data: Dataset, eval_data: Dataset, options: dict[str, Any], adapter: LoraConfig,
    seeds: Sequence[int], folder: Path, report: Report = lambda precision, seed: None,
) -> NumericsRecord:  # fmt: skip
    """Train an adapter in each precision with each seed, and compare.

    With one seed all precisions begin with the same adapter and see the same batches in the same order. Where the exact run
    ends, the gradients of the step that would follow are computed from its parameters in every precision: their cosines say
    what rounding does to one step, the losses what becomes of it in all of them.

    Parameters
    ----------
    model : Model
        A language model without an adapter; it has none afterwards.
    options : dict
        Of a `TrainConfig`, but for precision, seed and output_dir.
    adapter : LoraConfig
        What is trained; its seed is that of the run.
    seeds : sequence of int
        Of the adapter's start and of the order of the data; what is held out is the same for all.
    folder : Path
        Where runs have their folders, which are removed when a run has been measured.
    report : callable
        Told of every run that begins.

    Raises
    ------
    DivergenceError
        The exact run diverged: there is nothing to compare with, and no state of it is left.
    """
    if not len(eval_data):
        raise ConfigError("eval_data: expected held-out rows, by which precisions are compared, got none; give more data")
    precisions, left_out = precisions_of(model)
    record = NumericsRecord(list(seeds), {precision: [] for precision in precisions}, left_out)
    for seed in seeds:
        cosines: dict[str, dict[str, float]] = {}
        for precision in precisions:
            report(precision, seed)
            place = folder / f"{precision}-{seed}"
            config = TrainConfig(**options | {"precision": precision, "seed": seed, "output_dir": str(place)})
            model.add_adapter(adapter.model_copy(update={"seed": seed}), _ADAPTER)
            try:
                trainer = Trainer(model, train_data, config, eval_data)
                run = _trained(trainer, precision == EXACT)
                if precision == EXACT:
                    cosines = gradient_cosines(trainer, precisions)
            finally:
                model.delete_adapter(_ADAPTER)
                shutil.rmtree(place, ignore_errors=True)
            run.cosines = cosines.get(precision, {})
            record.runs[precision].append(run)
    return record


def _trained(trainer: Trainer, is_exact: bool) -> PrecisionRun:
    """Train to the end, and measure; of a run that diverged what it had reached."""
    run = PrecisionRun()
    trainer.saving.keeps = False  # its folder goes when it has been measured
    try:
        result = trainer.train()
        run.eval_loss, run.peak_memory_bytes = result.eval_loss, result.peak_memory_bytes
    except DivergenceError as error:
        run.diverged = str(error).partition("; ")[0]
        if is_exact:  # without what the message says is left of it
            raise DivergenceError(f"{run.diverged}, in precision {EXACT}; {str(error).rpartition('; ')[2]}") from error
    run.losses = [record["loss"] for record in trainer.history if "loss" in record]
    speed = steps_per_second(trainer.history)
    run.tokens_per_second = None if speed is None else speed[1]
    return run


def gradient_cosines(trainer: Trainer, precisions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each parameter the cosine of its gradient with the exact one, in the step that would come next.

    Parameters
    ----------
    trainer : Trainer
        Its model's parameters stay as they are.

    Returns
    -------
    dict
        Precision to name of a parameter to cosine; one whose exact gradient is zero has none, up to rounding: those of q and k
        are where every sequence has one token.
    """
    exact = _next_gradients(trainer, EXACT)
    least = _ROUNDING * max(map(np.linalg.norm, exact.values()))
    found = {}
    for precision in precisions:
        if precision != EXACT:
            pairs = zip(exact.items(), _next_gradients(trainer, precision).values(), strict=True)
            found[precision] = {name: _cosine(a, b) for (name, a), b in pairs if np.linalg.norm(a) > least}
    return found


def _next_gradients(trainer: Trainer, precision: str) -> dict[str, NDArray[np.float64]]:
    """The gradients of the step behind the last one."""
    config, decoder = trainer.config, trainer.model.decoder
    step, size = trainer.total_steps, config.per_device_train_batch_size
    _, groups = step_groups(len(trainer.train_data), step, size, config.gradient_accumulation_steps, config.seed)
    batches = [pack_group(trainer.train_data, group) for group in groups]
    weight = sum(batch.total_weight for batch in batches)
    with trainer.settings():
        decoder.precision = precision  # type: ignore[assignment]
        trainer.optimizer.zero_grad()
        for i, batch in enumerate(batches):
            arrays = batch.input_ids, batch.cu_seqlens, batch.targets, batch.loss_weight
            place = step * config.gradient_accumulation_steps + i
            decoder.forward_backward(*arrays, grad_scale=1.0 / weight, dropout_step=place)
    found = {parameter.name: np.ravel(np.asarray(parameter.grad)).astype(np.float64) for parameter in trainer.parameters}
    trainer.optimizer.zero_grad()
    trainer.model.free_activations()
    return found


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Zero where the other gradient has vanished, which an exact one has not."""
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / lengths if lengths else 0.0

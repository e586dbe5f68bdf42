"""What a comparison of precisions has found, and what follows from it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Any

EXACT = "exact"
LEAST_COSINE = 0.97  # a gradient that is further from the exact one is named


@dataclass
class PrecisionRun:
    """A run with one seed in one precision.

    Attributes
    ----------
    losses : list of float
        Of the training data, at each step.
    eval_loss : float or None
        Held-out, at the end; None: it diverged.
    cosines : dict
        Of gradients with the exact ones, by the names of parameters; none of the exact run.
    diverged : str
        Why there is no loss.
    """

    losses: list[float] = field(default_factory=list)
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    cosines: dict[str, float] = field(default_factory=dict)
    diverged: str = ""


@dataclass(frozen=True)
class Cosines:
    """Of several parameters, over all seeds: their mean, the least, and whose it is."""

    mean: float
    least: float
    worst: str

    @classmethod
    def of(cls, found: list[tuple[str, float]]) -> Cosines | None:
        """None where there are none."""
        if not found:
            return None
        worst, least = min(found, key=lambda one: one[1])
        return cls(fmean(value for _, value in found), least, worst)


def short_name(parameter: str) -> str:
    """A parameter without what all names of PEFT have in common: model.layers.3.self_attn.q_proj.lora_A."""
    return parameter.removeprefix("base_model.model.").removesuffix(".weight")


def module_of(parameter: str) -> str:
    """The target module that it belongs to: q_proj."""
    return short_name(parameter).rpartition(".lora_")[0].rpartition(".")[2] or parameter


def place_of(parameter: str) -> str:
    """Where of its module it is: 3 A, in layer 3 the matrix A; without a number where it is in no layer."""
    layer = re.search(r"\.(\d+)\.", parameter)
    return " ".join([*([layer[1]] if layer else []), short_name(parameter).rpartition("lora_")[2]])


@dataclass
class NumericsRecord:
    """Runs by precision, in the order of the seeds.

    Attributes
    ----------
    seeds : list of int
        The same for each precision.
    runs : dict
        Precision to a run for each seed.
    left_out : dict
        Precision that the device lacks to why.
    """

    seeds: list[int]
    runs: dict[str, list[PrecisionRun]]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def spread(self) -> float | None:
        """The standard deviation between seeds of exact's held-out losses; None of one seed."""
        losses = [run.eval_loss for run in self.runs[EXACT] if run.eval_loss is not None]
        return stdev(losses) if len(losses) > 1 else None

    def eval_loss(self, precision: str) -> float | None:
        """The mean of all seeds; None where one diverged."""
        losses = [run.eval_loss for run in self.runs[precision]]
        return None if None in losses else fmean(losses)  # type: ignore[arg-type]

    def differences(self, precision: str) -> list[float] | None:
        """Held-out loss less that of the exact run with the same seed, seed by seed; None where one diverged."""
        pairs = zip(self.runs[precision], self.runs[EXACT], strict=True)
        found = [run.eval_loss - exact.eval_loss for run, exact in pairs if None not in (run.eval_loss, exact.eval_loss)]  # type: ignore[operator]
        return found if len(found) == len(self.seeds) else None

    def largest_difference(self, precision: str) -> float | None:
        """The difference that is farthest from zero, without its sign."""
        found = self.differences(precision)
        return None if found is None else max(map(abs, found))

    def is_below_spread(self, precision: str) -> bool | None:
        """Whether the largest difference is below the spread between seeds; None where that is not known."""
        largest, spread = self.largest_difference(precision), self.spread
        if any(run.diverged for run in self.runs[precision]):
            return False
        return None if largest is None or spread is None else largest < spread

    def cosines(self, precision: str) -> Cosines | None:
        """Of all parameters."""
        return Cosines.of([pair for run in self.runs[precision] for pair in run.cosines.items()])

    def modules(self, precision: str) -> dict[str, Cosines]:
        """The same by target module, in the order of the model."""
        found: dict[str, list[tuple[str, float]]] = {}
        for run in self.runs[precision]:
            for name, cosine in run.cosines.items():
                found.setdefault(module_of(name), []).append((name, cosine))
        return {module: cosines for module, pairs in found.items() if (cosines := Cosines.of(pairs)) is not None}

    def worse(self, precision: str) -> dict[str, float]:
        """Parameters whose least cosine is below `LEAST_COSINE`, the worst first."""
        least: dict[str, float] = {}
        for run in self.runs[precision]:
            for name, cosine in run.cosines.items():
                least[name] = min(cosine, least.get(name, math.inf))
        return {name: value for name, value in sorted(least.items(), key=lambda one: one[1]) if value < LEAST_COSINE}

    def tokens_per_second(self, precision: str) -> float | None:
        """The median of all seeds."""
        found = [run.tokens_per_second for run in self.runs[precision] if run.tokens_per_second is not None]
        return median(found) if found else None

    def peak_memory_bytes(self, precision: str) -> int | None:
        """The most of all seeds."""
        return max((run.peak_memory_bytes for run in self.runs[precision] if run.peak_memory_bytes), default=None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        precisions = {precision: self._of_precision(precision) for precision in self.runs}
        found: dict[str, Any] = {"seeds": self.seeds, "spread": self.spread, "least_cosine": LEAST_COSINE}
        return found | {"precisions": precisions, "left_out": self.left_out}

    def _of_precision(self, precision: str) -> dict[str, Any]:
        runs = self.runs[precision]
        values: dict[str, Any] = {"eval_loss": self.eval_loss(precision), "eval_losses": [run.eval_loss for run in runs]}
        values |= {"tokens_per_second": self.tokens_per_second(precision)}
        values |= {"peak_memory_bytes": self.peak_memory_bytes(precision), "losses": [run.losses for run in runs]}
        if precision == EXACT:
            return values
        values |= {"differences": self.differences(precision), "largest_difference": self.largest_difference(precision)}
        values["is_below_spread"] = self.is_below_spread(precision)
        values["diverged"] = [run.diverged or None for run in runs]
        cosines = self.cosines(precision)
        if cosines is not None:
            values["cosine"] = vars(cosines) | {
                "modules": {module: vars(found) for module, found in self.modules(precision).items()},
                "worse": [{"parameter": name, "cosine": value} for name, value in self.worse(precision).items()],
            }
        return values

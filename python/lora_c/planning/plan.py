"""A plan: all that is known of a run before it starts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from .. import _core
from ..configs import TrainConfig
from ..configs.training import Recompute
from ..data.batching import total_steps
from ..errors import AdapterError
from ..families.architectures import WeightSpec
from ..model.device_list import devices, open_device
from ..notices import tell
from ..training.memory import MemoryForecast
from ..training.optimizers import checkpoint_state_bytes
from ..weights.parameter_values import META
from .advice import advice
from .cards import Card, card_named
from .flops import flop_terms
from .papers import Figure, figures_for
from .remedies import CARD_ROOM, ROOM, Remedy, nothing_helps, remedy
from .speed import Speed, measure_speed
from .subject import Subject
from .terms import Term, memory_terms, parameter_terms

_CAPABILITY = re.compile(r"compute capability (\d+\.\d)")


@dataclass(frozen=True)
class Place:
    """Memory that a run is to fit into.

    Attributes
    ----------
    name : str
        "this machine", or a card.
    free : int or None
        Bytes that it can have; None: nobody knows.
    card : Card or None
        Of the table.
    capability : float or None
        The compute capability of a GPU.
    is_device : bool
        A device of this machine beside the CPU.
    """

    name: str
    free: int | None
    card: Card | None = None
    capability: float | None = None
    is_device: bool = False

    @property
    def device(self) -> str:
        """Where a model without values forecasts what a run takes there."""
        return META if self.capability is None else f"{META}:{self.capability:.1f}"


def this_machine() -> Place:
    """What this process could still take, within the limits of the process and its control groups."""
    return Place("this machine", _core.memory_info("cpu")["free"])


def place_named(name: str) -> Place:
    """Return a place by the name of a device of this machine, or of a card.

    Raises
    ------
    ConfigError
        There is none of this name.
    DeviceError
        The device cannot be used.
    """
    if name == "cpu":
        return this_machine()
    found = next((device for device in devices() if device.name == name), None)
    if name.partition(":")[0] == "cuda":  # no card, so that what is missing is said
        open_device(name)
    if found is None:
        card = card_named(name)
        return Place(card.name, card.usable_bytes, card, card.capability)
    free = _core.memory_info(open_device(name))["free"]
    capability = _CAPABILITY.search(found.description)
    return Place(f"{name} ({found.description})", free, None, float(capability[1]) if capability else None, is_device=True)


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes
    ----------
    subject : Subject
        The model and the options of the run.
    place : Place
        Where it is to fit.
    recompute : "none", "attention" or "layer"
        What the run would choose, or was told.
    memory : MemoryForecast
        Bytes by kind.
    speed : Speed or None
        Where it was measured.
    tokens_to_learn : int or None
        Tokens with loss of the data, where they are known.
    """

    subject: Subject
    place: Place
    recompute: Recompute
    memory: MemoryForecast
    speed: Speed | None = None
    tokens_to_learn: int | None = None
    remedy: Remedy | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the forecast is within what is free; None where nobody knows that."""
        return None if self.place.free is None else self.memory.total <= self.place.free

    @property
    def without_remedy(self) -> str:
        """What is said where it does not fit and no change is enough."""
        return nothing_helps(self.subject.config)

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.subject.model.num_parameters(only_trainable=True)

    @property
    def total(self) -> int:
        """All parameters, those of an adapter, too."""
        return self.subject.model.num_parameters()

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the run, where the data or max_steps say them."""
        config = self.subject.config
        if config.max_steps <= 0 and not self.subject.lengths:
            return None
        return total_steps(len(self.subject.lengths), config)

    @property
    def saved_bytes(self) -> int:
        """Of the tensors that are saved at the end: an adapter in float32, or the whole model as it was stored."""
        if self.subject.model.adapter is not None:
            return 4 * self.trained
        return sum(_stored_bytes(self.subject, spec) for spec in self.subject.model.architecture.weights())

    @property
    def checkpoint_bytes(self) -> int:
        """Of the tensors of a checkpoint that a run goes on from: what is trained, its moments, and an adapter's own file."""
        parameters = self.subject.model.trainable_parameters()
        state = checkpoint_state_bytes(self.subject.config, parameters)
        return state + 4 * self.trained * (2 if self.subject.model.adapter is not None else 1)

    @property
    def parameter_terms(self) -> list[Term]:
        """The trained parameters."""
        return parameter_terms(self.subject.model.trainable_parameters())

    @property
    def memory_terms(self) -> list[Term]:
        """The memory."""
        return memory_terms(self.subject, self.memory, self.subject.config.optim)

    @property
    def flop_terms(self) -> list[Term]:
        """The operations of a token."""
        return flop_terms(self.subject, self.recompute)

    @property
    def figures(self) -> list[Figure]:
        """Of the papers."""
        return figures_for(self.subject)

    @property
    def advice(self) -> list[str]:
        """What follows from the data."""
        return advice(self.subject, self.tokens_to_learn)

    def measured(self, seconds: float) -> Plan:
        """Return the plan with the time of a step, measured for so many seconds on this machine; without it where there is no
        memory for that, or no adapter in the layers that are measured."""
        try:
            return replace(self, speed=measure_speed(self.subject, self.recompute, seconds))
        except (MemoryError, AdapterError) as error:
            tell(f"no time of a step: a few layers could not be measured ({error or 'no memory left'})")
            return self

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        config, memory = self.subject.config, vars(self.memory) | {"total": self.memory.total}
        flops = sum(term.value for term in self.flop_terms)
        seconds = None if self.speed is None or self.steps is None else self.steps * self.speed.step_seconds
        return {
            "name": self.subject.name,
            "source": self.subject.source,
            "method": config.method,
            "parameters": {"total": self.total, "trained": self.trained, "terms": _dicts(self.parameter_terms)},
            "recompute": self.recompute,
            "memory": memory | {"terms": _dicts(self.memory_terms)},
            "saved_bytes": self.saved_bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
            "flops_per_token": {"total": flops, "terms": _dicts(self.flop_terms)},
            "steps": self.steps,
            "speed": None if self.speed is None else self.speed.as_dict(),
            "seconds": seconds,
            "place": {"name": self.place.name, "free_bytes": self.place.free}
            | {"card": self.place.card.as_dict() if self.place.card else None},
            "fits": self.fits,
            "change": None
            if self.remedy is None
            else {"options": self.remedy.options, "cost": self.remedy.cost, "memory_bytes": self.remedy.plan.total},
            "papers": [figure.as_dict() for figure in self.figures],
            "advice": self.advice,
        }


def _dicts(terms: list[Term]) -> list[dict[str, Any]]:
    return [term.as_dict() for term in terms]


def _stored_bytes(subject: Subject, spec: WeightSpec) -> int:
    form = subject.model.forms.get(spec.name)
    return 4 * math.prod(spec.shape) if form is None else form.bytes_of(math.prod(spec.shape))


def make_plan(subject: Subject, place: Place, tokens_to_learn: int | None = None) -> Plan:
    """Count what a run would take; where that does not fit, find the cheapest change."""
    recompute = subject.recompute_within(place.free)
    memory = subject.forecast(recompute=recompute)
    plan = Plan(subject, place, recompute, memory, tokens_to_learn=tokens_to_learn)
    if plan.fits is not False or place.free is None:
        return plan
    return replace(plan, remedy=remedy(subject, place.free, CARD_ROOM if place.card else ROOM))


def config_within(config: TrainConfig, found: Remedy) -> TrainConfig:
    """The options of a run with the changes that make it fit."""
    return config.model_copy(update=found.options)

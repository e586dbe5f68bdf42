"""What fits: the memory that there is, and the cheapest change of a run that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import isqrt
from typing import Any

from ..configs import TrainConfig
from ..errors import FitError
from ..training.memory import MemoryForecast, chooses_recompute
from ..weights.parameter_values import META
from .subject import Subject

_SHORTEST = 64  # tokens that a sequence is not cut below
ROOM = 0.9  # of what is free, for a run with a change: buffers of files, the tokenizer, the data
CARD_ROOM = 0.95  # of a card, which holds none of those
_SLOWER = {"attention": "5 to 10 % slower", "layer": "a third slower"}  # recompute


@dataclass(frozen=True)
class Change:
    """Other values for some options of a run, and what they cost."""

    options: dict[str, Any]
    cost: str

    @property
    def flags(self) -> str:
        """As they are typed."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.options.items())


@dataclass(frozen=True)
class Remedy:
    """Changes that make a run fit together, its forecast then, and how much of that lies in a mapped file."""

    changes: tuple[Change, ...]
    plan: MemoryForecast
    mapped: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """All of them."""
        return {name: value for change in self.changes for name, value in change.options.items()}

    @property
    def flags(self) -> str:
        """As they are typed."""
        return Change(self.options, "").flags

    @property
    def cost(self) -> str:
        """What they cost, in words."""
        return "; ".join(dict.fromkeys(change.cost for change in self.changes))


def least_forecast(subject: Subject) -> MemoryForecast:
    """What a run takes at least, where recompute=auto takes what is less."""
    return subject.forecast(recompute="layer" if chooses_recompute(subject.config) else None)


def possible_changes(subject: Subject) -> Iterator[list[Change]]:
    """The kinds of changes that leave the data as they are, the cheapest first, each with its values from mild to strong."""
    config = subject.config
    if not chooses_recompute(config) and config.recompute != "layer":
        bits = "same bits" if config.activation_dtype == "float32" else "gradients rounded elsewhere"
        yield [
            Change({"recompute": kind}, f"{bits}, {slower}") for kind, slower in _SLOWER.items() if kind != config.recompute
        ]
    if (smaller := _smaller_batches(config)) != []:
        yield smaller
    if config.optim == "adamw_torch":
        yield [Change({"optim": "adamw_8bit"}, "moments rounded to 8 bits")]
    if config.activation_dtype == "float32" and (rounded := _rounded(subject)) != []:
        yield rounded
    if config.optim in ("adamw_torch", "adamw_8bit"):
        paged = {"adamw_torch": "paged_adamw_32bit", "adamw_8bit": "paged_adamw_8bit"}[config.optim]
        yield [Change({"optim": paged}, "moments in a file, read and written in each step")]
    if config.method == "lora" and not _has_codes(subject):
        yield [Change({"method": "qlora"}, "a base in 4 bits")]
    if config.method == "qlora" and config.quant_type == "q8_0" and not _has_codes(subject):
        yield [Change({"quant_type": "nf4"}, "a base in 4 bits")]


def _rounded(subject: Subject) -> list[Change]:
    """Of layers that are computed again int8 rounds the inputs, bfloat16 nothing; auto computes none again of rounded ones."""
    auto = chooses_recompute(subject.config)
    dtypes = ["int8"] if auto or subject.config.recompute == "layer" else ["bfloat16", "int8"]
    if subject.model.device != META:  # a GPU's
        dtypes.remove("int8")
    beside = {"recompute": "layer"} if auto else {}
    return [Change({"activation_dtype": dtype, **beside}, "same loss, rounded gradients") for dtype in dtypes]


def _has_codes(subject: Subject) -> bool:
    """Whether the base's file is quantized, so that every method takes it as it is."""
    forms = subject.model.forms.values()
    return any(form.own_tables or (form.is_mapped and form.kind not in ("F16", "BF16")) for form in forms)


def _smaller_batches(config: TrainConfig) -> list[Change]:
    batch, found = config.per_device_train_batch_size, []
    for part in _divisors(batch):
        options = {
            "per_device_train_batch_size": batch // part,
            "gradient_accumulation_steps": part * config.gradient_accumulation_steps,
        }
        found.append(Change(options, "the same steps in more and smaller passes"))
    return found


def _divisors(n: int) -> list[int]:
    """Those above 1, in order."""
    low = [part for part in range(1, isqrt(n) + 1) if n % part == 0]
    return sorted({*low, *(n // part for part in low)} - {1})


def _shorter(subject: Subject) -> list[Change]:
    found, length = [], subject.longest // 2
    while length >= _SHORTEST:
        found.append(Change({"max_seq_length": length}, "longer sequences are cut"))
        length //= 2
    return found


def refuse_what_cannot_fit(subject: Subject, free: int | None, maps_files: bool = True) -> None:
    """Refuse a run whose forecast is above the bytes that are free, before anything of it is loaded; None: nobody knows.

    Weights that lie in a mapped file need not be in memory all at once; a device but the CPU maps none.

    Raises
    ------
    FitError
        With the cheapest change that makes it fit.
    """
    least, mapped = least_forecast(subject), subject.model.mapped_bytes() if maps_files else 0
    if free is None or least.total - mapped <= free:
        return
    found = remedy(subject, free, maps_files=maps_files)
    way_out = f"{nothing_helps(subject.config)}; a smaller {_largest(least)} does"
    if found is not None:
        way_out = f"{found.flags} makes it {found.plan.total / 2**20:,.1f} MiB ({found.cost})"
    raise FitError(
        f"memory: expected a run within the {free / 2**20:,.1f} MiB that are free, got {least.describe()}; {way_out}, "
        "`lora-c plan` shows the sums"
    )


def _largest(plan: MemoryForecast) -> str:
    """Of what a run keeps."""
    trained = plan.parameters + plan.gradients + plan.optimizer
    return "model" if trained <= plan.base else "adapter (--lora-r, --target-modules)"


def nothing_helps(config: TrainConfig) -> str:
    """What is said where no change is enough."""
    less = "; --method lora and qlora, which train an adapter, take less" if config.method == "full" else ""
    return f"no change of recompute, micro-batch, optimizer, activations, base or length makes it fit{less}"


def remedy(subject: Subject, free: int, room: float = ROOM, maps_files: bool = False) -> Remedy | None:
    """The cheapest change within what is free, with some room for what a process takes besides: one alone, or two, or all
    that there are; None where none is enough. Data are cut only where one or two others do not do.

    Parameters
    ----------
    maps_files : bool
        Whether what is mapped of a file need not fit.
    """
    limit = room * free
    kinds, cut = list(possible_changes(subject)), _shorter(subject)
    chosen = [chosen for count in (1, 2) for chosen in combinations(kinds, count)]
    if cut:
        chosen += [(cut,), *((kind, cut) for kind in kinds)]
        kinds.append(cut)
    chosen += [tuple(kinds[:count]) for count in range(3, len(kinds) + 1)]
    found = (_mildest(subject, each, limit, maps_files) for each in chosen)
    return next((each for each in found if each is not None), None)


def _mildest(subject: Subject, kinds: tuple[list[Change], ...], limit: float, maps_files: bool) -> Remedy | None:
    """The mildest values of these kinds of changes that fit."""
    for strength in range(max(map(len, kinds))):
        changes = tuple(values[min(strength, len(values) - 1)] for values in kinds)
        found = _applied(subject, changes)
        if found is not None and found.plan.total - (found.mapped if maps_files else 0) <= limit:
            return found
    return None


def _applied(subject: Subject, changes: tuple[Change, ...]) -> Remedy | None:
    options = {name: value for change in changes for name, value in change.options.items()}
    if sum(len(change.options) for change in changes) > len(options):  # two of one option
        return None
    changed = subject.with_config(subject.config.model_copy(update=options))
    return Remedy(changes, least_forecast(changed), changed.model.mapped_bytes())

"""Options of IA3, with PEFT's names."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from .base import Config, Seed
from .peft_constants import PEFT_CONSTANTS, without_constants, without_task


class IA3Config(Config):
    """IA3: a trained vector for each adapted matrix, with PEFT's names.

    The vector multiplies what a matrix puts out, its bias included; of a feed-forward module, what it reads. Beside a LoRA
    adapter it multiplies the sum of base and LoRA; of a feed-forward module, what both read.

    Parameters
    ----------
    target_modules : str or list of str, optional
        "all-linear", a list of module names (each matches as a suffix), or a regular expression that must match the whole
        module path. None: PEFT's choice for the family.
    feedforward_modules : str or list of str, optional
        Which of them have a vector for their input: by the end of their path (here without regard to dots, as in PEFT), or
        a regular expression for the whole path. None: PEFT's choice for the family.
    exclude_modules : str or list of str, optional
        Modules left out, matched as `target_modules` are.
    fan_in_fan_out : bool
        Written to the file for PEFT, where the base stores its weights as (in, out); the mathematics is the same.
    modules_to_save : list of str, optional
        Modules that are trained whole and saved with the adapter, by the end of their path.
    init_ia3_weights : bool
        True: the vectors begin as ones, so that a new adapter changes nothing. False: as normal numbers.
    seed : int
        Of those numbers: each module draws from its own stream.

    Source
    ------
    IA3, arXiv:2205.05638, section 3.3.
    """

    def __init__(self, **values: Any) -> None:
        constants = PEFT_CONSTANTS | {"peft_type": ("IA3", "this is its class")}
        super().__init__(**without_task("IA3Config", without_constants("IA3Config", values, constants)))

    target_modules: str | list[str] | None = Field(
        None, description="all-linear, names separated by commas, or a regular expression."
    )
    feedforward_modules: str | list[str] | None = Field(None, description="Modules whose input is scaled.")
    exclude_modules: str | list[str] | None = Field(None, description="Modules left out.")
    fan_in_fan_out: bool = Field(False, description="Written for PEFT; the base decides.")
    modules_to_save: list[str] | None = Field(None, description="Modules trained whole, such as lm_head.")
    init_ia3_weights: bool = Field(True, description="Begin as ones.")
    seed: Seed = Field(0, description="Seed of the values that it begins with.")

    @field_validator("modules_to_save", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _feedforward_among_targets(self) -> IA3Config:
        targets, feedforward = self.target_modules, self.feedforward_modules
        if isinstance(targets, list) and isinstance(feedforward, list):
            other = next((name for name in feedforward if name not in targets), None)
            if other is not None:
                raise ValueError(f"feedforward_modules: expected names of target_modules, got {other!r}; add it there")
        return self

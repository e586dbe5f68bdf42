"""The configurations of several adapters that are in use at once."""

from __future__ import annotations

from pydantic import Field, SerializeAsAny

from .base import Config


class StackConfig(Config):
    """What a stack of adapters consists of: made by `model.set_adapter([...])`, not by hand.

    Parameters
    ----------
    adapters : dict
        The configuration of each, by its name.
    """

    adapters: dict[str, SerializeAsAny[Config]] = Field(description="The configuration of each, by its name.")

    @property
    def seed(self) -> int | None:
        """The seed of the first that has one."""
        return next((seed for part in self.adapters.values() if (seed := getattr(part, "seed", None)) is not None), None)

"""The devices that models can compute on."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _core
from ..errors import ConfigError


@dataclass(frozen=True)
class Device:
    """A device by the name that ``device=`` takes.

    Attributes
    ----------
    name : str
        "cpu", or what a backend calls it.
    description : str
        What it is, in words.
    reason : str
        Empty where it can be used; else why not and what helps.
    """

    name: str
    description: str
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether models can compute on it."""
        return not self.reason


def devices() -> list[Device]:
    """Return the devices of this machine, the CPU first, those that cannot be used with the reason.

    Backends other than the CPU's are loaded from the files that the environment variable ``LORA_C_BACKENDS`` names,
    separated by ``:``.
    """
    return [Device(**found) for found in _core.devices()]


def open_device(name: str) -> None:
    """Take a device into use, so that one which cannot be used is refused before anything is read.

    Raises
    ------
    ConfigError
        There is none of this name.
    DeviceError
        It cannot be used; the message says why.
    """
    if not isinstance(name, str):
        raise ConfigError(f"device: expected a name of devices(), got {name!r}")
    try:
        _core.transfers(name)  # which opens it
    except ValueError as error:
        raise ConfigError(str(error)) from None

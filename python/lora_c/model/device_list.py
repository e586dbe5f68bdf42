"""The devices that models can compute on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .. import _core
from ..errors import ConfigError
from ..weights.parameter_values import is_meta

_GPU = Path("/dev/nvidiactl")  # made by NVIDIA's driver


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

    NVIDIA GPUs are "cuda", "cuda:1", …, where the plug-in was built (environment variable ``LORA_C_CUDA`` while installing).
    Further backends are loaded from the files that the environment variable ``LORA_C_BACKENDS`` names, separated by ``:``.
    """
    found = [Device(**device) for device in _core.devices()]
    if _GPU.exists() and not any(_is_gpu(device.name) for device in found):
        found.append(Device("cuda", "NVIDIA GPUs", _why_none_opens()))
    return found


def memory_of(device: Device) -> dict[str, int | None] | None:
    """Return the free and the total bytes of a device, which is opened for that; None where it cannot be used.

    Parameters
    ----------
    device : Device
        One of `devices()`.
    """
    try:
        return _core.memory_info(device.name) if device.usable else None
    except (ValueError, RuntimeError):  # listed, and yet it does not open
        return None


def _why_none_opens() -> str:
    try:
        _core.memory_info("cuda")
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def _is_gpu(name: str) -> bool:
    return name.partition(":")[0] == "cuda"


def device_name(name: str | None) -> str:
    """Return the name of the device that is meant: None is what ``LORA_C_DEVICE`` names, else "cpu"; "cuda:0" is "cuda"."""
    name = os.environ.get("LORA_C_DEVICE") or "cpu" if name is None else name
    return name.removesuffix(":0") if isinstance(name, str) else name


def open_device(name: str | None) -> str:
    """Take a device into use, so that one which cannot be used is refused before anything is read; return its name.

    Parameters
    ----------
    name : str or None
        None: what the environment variable ``LORA_C_DEVICE`` names, else "cpu".

    Raises
    ------
    ConfigError
        There is none of this name.
    DeviceError
        It cannot be used; the message says why.
    """
    name = device_name(name)
    if not isinstance(name, str) or is_meta(name):
        raise ConfigError(f"device: expected a name of devices(), got {name!r}")
    try:
        _core.transfers(name)  # which opens it
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return name

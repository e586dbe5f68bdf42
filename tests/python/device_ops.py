"""lora_c.ops on another device, for tests that are written with NumPy's arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

import lora_c as lc
from lora_c import ops

# Parameters whose arrays stay in the host's memory on every device.
OF_THE_HOST = {"ids", "positions", "inv_freq", "cu_seqlens", "targets", "loss_weight"}


def back(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(back(part) for part in result)
    return result.to("cpu") if isinstance(result, lc.DeviceArray) else result


class OpsOn:
    """The operations with arguments brought to a device; their results, and what they change in place, are brought back."""

    def __init__(self, device: str) -> None:
        self.device = device

    def there(self, name: str, given: Any) -> Any:
        moves = isinstance(given, (np.ndarray, lc.NF4Tensor)) and name not in OF_THE_HOST
        return lc.to_device(given, self.device) if moves else given

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(ops, name)
        names = list(inspect.signature(operation).parameters)

        def call(*given: Any, **options: Any) -> Any:
            arguments = [self.there(parameter, value) for parameter, value in zip(names, given, strict=False)]
            result = operation(*arguments, **options)
            for before, after in zip(given, arguments, strict=True):
                if isinstance(after, lc.DeviceArray):
                    before[...] = after.to("cpu")
            return back(result)

        return call

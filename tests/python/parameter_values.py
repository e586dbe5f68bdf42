"""Writing values into parameters, wherever they lie; reading is `parameter.data` everywhere."""

from __future__ import annotations

from typing import Any

import lora_c as lc


def write_values(parameter: lc.Parameter, values: Any, where: Any = ...) -> None:
    """What `parameter.data[where] = values` does where the data is a view, and not a copy of what lies on another device."""
    whole = parameter.read()
    whole[where] = values
    parameter.write(whole)

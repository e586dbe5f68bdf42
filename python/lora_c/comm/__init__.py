"""The processes that train one model together: how many there are, which one this is, and what they tell each other.

`launched` says who is beside this process without NumPy or the extension: what is named here is loaded when it is used.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .communicator import Communicator, SelfCommunicator
    from .world import start_world

__all__ = ["Communicator", "SelfCommunicator", "start_world"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".world" if name == "start_world" else ".communicator", __name__), name)

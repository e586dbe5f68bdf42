"""What the modules of commands take their flags from."""

from .command import Command
from .flag_types import FreeText, TextList
from .flags import config_options, take

__all__ = ["Command", "FreeText", "TextList", "config_options", "take"]

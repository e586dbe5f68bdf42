"""The processes that train one model together: how many there are, which one this is, and what they tell each other."""

from .communicator import Communicator, SelfCommunicator
from .world import start_world, world

__all__ = ["Communicator", "SelfCommunicator", "start_world", "world"]

"""Adapters: configurations, files of several formats, start values, and their life on a model."""

from .adapter import Adapter, LoadedAdapter
from .adapter_set import AdapterSet
from .config import parse_adapter_config
from .data import AdapterArrays, MatrixArrays, TokenRows
from .formats import read_adapter, write_adapter
from .initialize import changes_base, init_adapter, init_from_base
from .loaded import load_arrays
from .stack import AdapterStack
from .targets import AdapterTarget, find_saved, find_targets, find_token_ids

__all__ = [
    "Adapter",
    "AdapterArrays",
    "AdapterSet",
    "AdapterStack",
    "AdapterTarget",
    "LoadedAdapter",
    "MatrixArrays",
    "TokenRows",
    "changes_base",
    "find_saved",
    "find_targets",
    "find_token_ids",
    "init_adapter",
    "init_from_base",
    "load_arrays",
    "parse_adapter_config",
    "read_adapter",
    "write_adapter",
]

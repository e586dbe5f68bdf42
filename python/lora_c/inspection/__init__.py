"""What a file or folder is: format, architecture, types, sizes, adapter rank and targets, and what is unsupported in it.

report.py    what is found, as data
files.py     one file: safetensors, JSON, data, pickles
gguf_files.py  one GGUF file: a model or an adapter
folders.py   a folder: models, adapters, training output, checkpoints, tokenizers, data
"""

from .folders import inspect_path
from .report import Report

__all__ = ["Report", "inspect_path"]

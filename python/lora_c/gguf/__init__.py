"""GGUF: models and adapters in llama.cpp's file format, read and written."""

from .adapters import read_adapter, write_adapter
from .models import write_model

__all__ = ["read_adapter", "write_adapter", "write_model"]

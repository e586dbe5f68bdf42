"""Modules under the paths that they had when the package was one floor.

An old path still answers, with a `DeprecationWarning` that names the new one, and gives the same module object. Names that
`lora_c` itself has are not meant to be imported from anywhere else.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from warnings import warn

# The old path to the new one, both below lora_c.
_MOVED = {
    "answer_text": "generation.answer_text",
    "architectures": "families.architectures",
    "aside": "files.aside",
    "attention_windows": "families.attention_windows",
    "batching": "data.batching",
    "callbacks": "training.callbacks",
    "chat_template": "text.chat_template",
    "checkpoint": "checkpoints.folder",
    "checkpoint_schedule": "training.checkpoint_schedule",
    "chosen_template": "text.chosen_template",
    "class_defaults": "families.class_defaults",
    "config_and_files": "checkpoints.config_and_files",
    "config_help": "configs.help",
    "config_keys": "families.config_keys",
    "config_values": "families.config_values",
    "console": "display.console",
    "continuation": "text.continuation",
    "device_list": "model.device_list",
    "digests": "runs.digests",
    "dropped_characters": "text.dropped_characters",
    "encoded_ahead": "text.encoded_ahead",
    "ends": "text.ends",
    "final_message": "text.final_message",
    "frozen_values": "configs.frozen_values",
    "gguf.adapters": "adapters.gguf_format",
    "generation_file": "generation.generation_file",
    "held_out": "training.held_out",
    "html_table": "display.html_table",
    "hub": "checkpoints.hub",
    "in_place": "files.in_place",
    "interrupt": "training.interrupt",
    "json_files": "files.json_files",
    "layer_ropes": "families.layer_ropes",
    "leaving": "training.leaving",
    "load_checks": "model.load_checks",
    "loading": "model.loading",
    "logits": "generation.logits",
    "loss_curve": "display.loss_curve",
    "loss_picture": "display.loss_picture",
    "measures": "model.measures",
    "memory": "training.memory",
    "merge": "model.merge",
    "merge_report": "model.merge_report",
    "metrics": "runs.metrics",
    "model_adapters": "model.adapter_methods",
    "model_card": "runs.model_card",
    "model_names": "checkpoints.model_names",
    "model_shown": "model.shown",
    "model_text": "model.text_methods",
    "multimodal": "families.multimodal",
    "notebook_progress": "display.notebook_progress",
    "os_errors": "files.os_errors",
    "other_names": "configs.other_names",
    "own_files": "checkpoints.own_files",
    "parameter_values": "weights.parameter_values",
    "parts": "weights.parts",
    "peft_methods": "model.peft_methods",
    "plot": "display.plot",
    "prequantized": "checkpoints.prequantized",
    "printable": "display.printable",
    "progress": "display.progress",
    "progress_bar": "display.progress_bar",
    "prompts": "text.prompts",
    "read_ahead": "checkpoints.read_ahead",
    "regular_file": "files.regular_file",
    "resize_embedding": "model.resize_embedding",
    "resume": "runs.resume",
    "rope": "families.rope",
    "rope_table": "families.rope_table",
    "run_checkpoints": "runs.checkpoints",
    "run_checks": "training.run_checks",
    "run_lock": "runs.lock",
    "run_metrics": "runs.history",
    "run_record": "runs.record",
    "run_settings": "training.run_settings",
    "safetensors_file": "checkpoints.safetensors_file",
    "safetensors_writer": "checkpoints.safetensors_writer",
    "sample_answers": "training.sample_answers",
    "sampling": "generation.sampling",
    "saving": "model.saving",
    "scales": "families.scales",
    "schedule": "training.schedule",
    "special_tokens": "text.special_tokens",
    "steady_stream": "display.steady_stream",
    "stream_decoder": "text.stream_decoder",
    "template_files": "text.template_files",
    "template_limits": "text.template_limits",
    "template_messages": "text.template_messages",
    "template_sandbox": "text.template_sandbox",
    "template_text": "text.template_text",
    "text_ids": "text.text_ids",
    "tied_head": "checkpoints.tied_head",
    "tokenizer": "text.tokenizer",
    "tokenizer_growth": "text.tokenizer_growth",
    "tokenizer_of_model": "model.tokenizer_of_model",
    "tokenizers_library": "text.tokenizers_library",
    "tool_calls": "text.tool_calls",
    "train_result": "training.train_result",
    "trainer": "training.trainer",
    "training_state": "training.state",
    "uninterrupted": "files.uninterrupted",
    "unneeded_tensors": "checkpoints.unneeded_tensors",
    "written": "checkpoints.written",
}
# Names that a module had whose path is a package now (or a package that has lost them), by the module that has them.
_MOVED_NAMES = {
    "families": dict.fromkeys(("FAMILIES", "Family"), "families.table"),
    "files": dict.fromkeys(("atomic_file", "atomic_folder", "recover_folder", "write_json", "write_text"), "files.atomic"),
    "generation": dict.fromkeys(("generate_batch", "generate_ids", "generate_text"), "generation.answers"),
    "gguf": dict.fromkeys(("read_adapter", "write_adapter"), "adapters.gguf_format"),
    "model": {"Model": "model.model", "load_model": "model.opening", "open_checkpoint": "model.opening"},
}


def _tell(old: str, new: str, depth: int) -> None:
    """depth: of the caller's caller in which the old path stands; frames of the import system are not counted."""
    warn(f"lora_c.{old} is now lora_c.{new}; the old path will go", DeprecationWarning, stacklevel=depth + 1)


class _Loader:
    """Gives the module that stands elsewhere now, as it is there."""

    def __init__(self, old: str) -> None:
        self.old = old

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        _tell(self.old, _MOVED[self.old], 2)
        self.module = import_module(f"lora_c.{_MOVED[self.old]}")
        self.spec = self.module.__spec__
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system wrote that of the old path into it
        module.__loader__ = self.spec.loader if self.spec else None


def spec_of(name: str) -> ModuleSpec | None:
    """What the import system needs to know of an old path; None where there was none."""
    old = name.removeprefix("lora_c.")
    return ModuleSpec(name, _Loader(old)) if old in _MOVED else None  # type: ignore[arg-type]


def module_of_old_attribute(name: str) -> ModuleType | None:
    """Return the module that `lora_c.<name>` meant before; None where there was none."""
    if name not in _MOVED:
        return None
    _tell(name, _MOVED[name], 3)
    return import_module(f"lora_c.{_MOVED[name]}")


def name_of_old_module(package: str, name: str) -> Any:
    """Return a name that a package had when it was a module.

    Raises
    ------
    AttributeError
        It had no such name.
    """
    old = package.removeprefix("lora_c.")
    new = _MOVED_NAMES[old].get(name)
    if new is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
    _tell(f"{old}.{name}", f"{new}.{name}", 3)
    return getattr(import_module(f"lora_c.{new}"), name)

"""The public names of lora_c in groups, with the signatures that the package or its stub declares."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path
from typing import Any

import lora_c

STUB = Path(lora_c.__file__).with_name("_core.pyi")
GROUPS: dict[str, tuple[str, ...]] = {
    "Models and data": ("load_model", "Model", "load_dataset", "Dataset", "find_labels", "Labels", "Classification"),
    "Text from several prompts": ("Batch", "Answer"),
    "Training": (
        "Trainer", "TrainResult", "Callback", "TrainerState", "TensorBoardCallback", "WandbCallback", "replay", "Replay",
    ),
    "Settings": (
        "LoraConfig", "IA3Config", "BottleneckConfig", "PromptTuningConfig", "PrefixTuningConfig", "TrainConfig",
        "GenerationConfig",
    ),
    "Layers, tensors, optimizers": (
        "NF4Tensor", "GGMLTensor", "Parameter", "LoRALinear", "AdamW", "AdamW8bit", "SGD", "Lion", "Adafactor",
        "Muon", "Decoder", "KVCache",
        "DecoderAdapters", "DeviceArray", "DeviceWeight", "to_device", "from_dlpack",
    ),
    "This machine": (
        "devices", "Device", "get_num_threads", "set_num_threads", "get_precision", "set_precision", "get_isa", "set_isa",
        "supported_isas", "memory_info", "memory_report", "reset_peak_memory",
    ),
    "Errors and warnings": (
        "LoraCError", "AdapterError", "CheckpointError", "ConfigError", "DataError", "DeviceError", "DivergenceError",
        "FitError", "SaveError", "LoraCWarning",
    ),
}  # fmt: skip
MODULES = ("ops", "reference")
# The stub's short names of types, as a reader knows them.
_TYPES = {
    "_F32": "ndarray", "_Result": "array",
    "_Array": "array", "_Weight": "weight", "_Ids": "ids", "_DType": "dtype", "NDArray[Any]": "ndarray",
    "NDArray[np.uint8]": "ndarray",
}  # fmt: skip


def check_groups() -> None:
    """Every public name stands in one group."""
    grouped = [name for names in GROUPS.values() for name in names] + [*MODULES, "__version__"]
    if sorted(grouped) != sorted(lora_c.__all__):
        raise SystemExit(f"GROUPS in {__file__}: {sorted(set(grouped) ^ set(lora_c.__all__))} stand in one of both only")


@functools.cache
def _declared() -> dict[str, ast.FunctionDef | ast.AnnAssign]:
    """What the stub declares, by name: "rmsnorm", "KVCache.length"; the last of several overloads."""
    found: dict[str, ast.FunctionDef | ast.AnnAssign] = {}
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        for child, prefix in [(node, "")] + [
            (n, f"{node.name}.") for n in getattr(node, "body", []) if isinstance(node, ast.ClassDef)
        ]:
            if isinstance(child, ast.FunctionDef):
                found[prefix + child.name] = child
            elif isinstance(child, ast.AnnAssign):
                found[prefix + ast.unparse(child.target)] = child
    return found


def _readable(text: str) -> str:
    for short, name in _TYPES.items():
        text = re.sub(rf"(?<![\w.]){re.escape(short)}(?![\w\[])", name, text)
    return text


def is_compiled(value: Any) -> bool:
    """Whether it comes from the extension, whose types stand in the stub."""
    return not inspect.isfunction(value) and not inspect.isclass(value)


def members(cls: type) -> dict[str, Any]:
    """Public methods, properties and attributes that a class defines itself, by name, in the order of the source."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("lora_c")]
    found = {name: inspect.getattr_static(cls, name) for base in own for name in vars(base) if not name.startswith("_")}
    return {name: value for name, value in found.items() if inspect.isroutine(value) or _is_property(value)}


def _is_property(value: Any) -> bool:
    return isinstance(value, (property, functools.cached_property)) or inspect.isdatadescriptor(value) and bool(value.__doc__)


def is_method(value: Any) -> bool:
    return (
        inspect.isroutine(value) and not inspect.isdatadescriptor(value) and not isinstance(value, functools.cached_property)
    )


def type_of(owner: str, name: str, value: Any) -> str:
    """The type of a property or attribute, as it is declared."""
    getter = getattr(value, "fget", None) or getattr(value, "func", None)
    if getter is not None:
        return str(inspect.get_annotations(getter).get("return", ""))
    node = _declared().get(f"{owner}.{name}")
    kind = node.returns if isinstance(node, ast.FunctionDef) else node.annotation if node else None
    return _readable(ast.unparse(kind)) if kind else ""


def parameters(value: Any) -> list[str]:
    """The names of the parameters that a caller gives."""
    names = list(inspect.signature(getattr(value, "__func__", value)).parameters)
    if inspect.isclass(value):
        return names
    bound = names[:1] in (["self"], ["cls"], ["model"], ["trainer"]) or names[:1] == ["type"] and not inspect.isfunction(value)
    return [name for name in names[bound:] if not name.startswith("_")]


def signature(name: str, value: Any, shown: str) -> str:
    """A call as one writes it, with types; over several lines where it is long."""
    node = _declared().get(name) or _declared().get(f"{name}.__new__")
    if isinstance(node, ast.FunctionDef) and getattr(value, "__module__", None) in ("lora_c._core", None):
        parts, result = _declared_parts(node)
    else:
        parts, result = _inspected_parts(value)
    arrow = f" -> {result}" if result and result != "None" and not inspect.isclass(value) else ""
    line = f"{shown}({', '.join(parts)}){arrow}"
    return line if len(line) <= 100 else f"{shown}(\n    " + ",\n    ".join(parts) + f",\n){arrow}"


def _declared_parts(node: ast.FunctionDef) -> tuple[list[str], str]:
    text = _readable(ast.unparse(node.args))
    parts = [re.sub(r"^(\w+: [^=]+)=", r"\1 = ", part.strip()) for part in _split(text)]
    while parts and parts[0] in ("self", "cls"):
        parts.pop(0)
    return parts[1:] if parts[:1] == ["/"] else parts, _readable(ast.unparse(node.returns)) if node.returns else ""


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return [part for part in parts if part.strip()]


def _inspected_parts(value: Any) -> tuple[list[str], str]:
    call = inspect.signature(getattr(value, "__func__", value))
    parts, star = [], False
    for i, (name, p) in enumerate(call.parameters.items()):
        if i == 0 and name in ("self", "cls", "model", "trainer") and not inspect.isclass(value):
            continue
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        kind = (
            ""
            if p.annotation is p.empty
            else f": {p.annotation}"
            if isinstance(p.annotation, str)
            else f": {p.annotation.__name__}"
        )
        default = "" if p.default is p.empty else f"{' = ' if kind else '='}{p.default!r}"
        parts.append({p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + name + kind + default)
    result = call.return_annotation
    return parts, result if isinstance(result, str) else ""

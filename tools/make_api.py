"""Writes docs/API.md: every public name of lora_c with its signature and what its docstring says. `make api` runs it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import lora_c
from docstrings import Docstring, Entry, parse
from public_api import GROUPS, MODULES, check_groups, is_method, members, signature, type_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "API.md"
HEAD = """# API

Every public name of `lora_c` {version}, made from the docstrings by `make api`; `help(lora_c.Model.generate)` says the same.
An *array* is what has the buffer protocol, a NumPy array above all; a *weight* is an `NF4Tensor`, `GGMLTensor`, `Parameter` or
array; *ids* are an integer array or a list of int.
"""


def render() -> str:
    """The whole page."""
    check_groups()
    bodies = [_group(title, names) for title, names in GROUPS.items()] + [_module(name) for name in MODULES]
    return "\n".join([HEAD.format(version=lora_c.__version__), _contents(), *bodies]).rstrip() + "\n"


def _contents() -> str:
    lines = ["## Contents", ""]
    for title, names in GROUPS.items():
        lines.append(f"* [{title}](#{_anchor(title)}): " + ", ".join(f"[`{name}`](#{_anchor(name)})" for name in names))
    lines += [f"* [`lora_c.{name}`](#{_anchor(f'lora_c.{name}')}): {_doc(getattr(lora_c, name)).summary}" for name in MODULES]
    return "\n".join([*lines, ""])


def _anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _doc(value: Any) -> Docstring:
    return parse(inspect.getdoc(value) or "")


def _group(title: str, names: tuple[str, ...]) -> str:
    return "\n".join([f"## {title}", "", *(_name(name) for name in names)])


def _name(name: str) -> str:
    value = getattr(lora_c, name)
    if not inspect.isclass(value):
        return "\n".join([f"### {name}", "", _code(signature(name, value, f"lora_c.{name}")), _body(_doc(value))])
    if issubclass(value, BaseException):
        base = next(base.__name__ for base in value.__bases__)
        return "\n".join([f"### {name}", "", f"A `{base}`. " + _body(_doc(value))])
    return _class(name, value)


def _class(name: str, cls: type) -> str:
    doc = _doc(cls)
    own = members(cls)
    lines = [f"### {name}", ""]
    if "Parameters" in doc.sections:
        lines.append(_code(signature(name, cls, f"lora_c.{name}")))
    attributes = doc.entries("Attributes")
    told = {each for entry in attributes for each in entry.names}
    attributes += [
        Entry((each,), type_of(name, each, value), _doc(value).summary)
        for each, value in own.items()
        if not is_method(value) and each not in told
    ]
    lines.append(_body(doc, attributes))
    for each, value in own.items():
        if is_method(value):
            lines += [f"#### {name}.{each}", "", _code(signature(f"{name}.{each}", value, each)), _body(_doc(value))]
    return "\n".join(lines)


def _module(name: str) -> str:
    module = getattr(lora_c, name)
    lines = [f"## lora_c.{name}", "", _text(_doc(module).text), ""]
    for each in getattr(module, "__all__", None) or _functions(module):
        value = getattr(module, each)
        lines += [f"### {name}.{each}", "", _code(signature(each, value, each)), _body(_doc(value))]
    return "\n".join(lines)


def _functions(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if _is_own(value, module) and not name.startswith("_")]


def _is_own(value: Any, module: Any) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _text(text: str) -> str:
    """Paragraphs of a docstring: reST's double backticks become Markdown's, blocks that are indented become code."""
    out = []
    for block in text.split("\n\n"):
        if block.startswith("    "):
            out.append("```python\n" + re.sub(r"^    ", "", block, flags=re.M) + "\n```")
        else:
            out.append(block.replace("``", "`").removesuffix("::"))
    return "\n\n".join(out)


def _body(doc: Docstring, attributes: list[Entry] | None = None) -> str:
    parts = [_text(doc.text)]
    for title in ("Parameters", "Attributes", "Returns", "Yields", "Raises"):
        entries = attributes if title == "Attributes" and attributes is not None else doc.entries(title)
        if entries:
            parts.append(f"**{title}**\n\n" + "\n".join(_item(entry) for entry in entries))
    for title, text in doc.sections.items():
        if title not in ("Parameters", "Attributes", "Returns", "Yields", "Raises"):
            is_code = text.lstrip().startswith(">>>")
            parts.append(f"**{title}**\n\n```python\n{text.strip()}\n```" if is_code else f"**{title}:** {_text(text)}")
    return "\n\n".join(parts) + "\n"


def _item(entry: Entry) -> str:
    names = ", ".join(f"`{name}`" for name in entry.names)
    kind = f"*{entry.type}*" if entry.type else ""
    text = " ".join(_text(entry.text).split("\n"))
    head = " ".join(filter(None, (names, f"({kind})" if names and kind else kind)))
    return f"* {head}: {text}" if text else f"* {head}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")

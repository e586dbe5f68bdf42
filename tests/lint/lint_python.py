"""Checks the rules of the Python tree that a type checker does not: which room imports which, circles, sizes.

Usage: python tests/lint/lint_python.py [ROOT]
Prints one line per violation, exits with 1 when there are any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "lora_c"
# A room imports itself and those above it in this list, never one below; what stands directly in the package is free to all.
ROOMS = (
    "files", "comm", "reference", "display", "configs", "families", "weights", "text", "checkpoints", "gguf", "adapters",
    "data", "runs", "generation", "model", "training", "planning", "tasks", "comparison", "inspection", "chat", "serve",
    "demo", "cli",
)  # fmt: skip
MOST_FILES = 12  # directly in the package
MOST_LINES_OF_A_CLASS = 250
MOST_LINES_OF_A_FUNCTION = 60


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted name to file of every module."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_for_type_checkers(node: ast.AST) -> bool:
    """Whether a statement is an `if TYPE_CHECKING:`; nothing below it happens at run time."""
    return isinstance(node, ast.If) and any(isinstance(n, ast.Name) and n.id == "TYPE_CHECKING" for n in ast.walk(node.test))


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below this one that run time reaches."""
    for child in ast.iter_child_nodes(node):
        if is_for_type_checkers(child):
            yield from (n for part in child.orelse for n in (part, *run_time_nodes(part)))  # type: ignore[attr-defined]
        else:
            yield child
            yield from run_time_nodes(child)


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module of the package) for every import, also those within functions."""
    home = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in run_time_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names if item.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for item in node.names:
                inner = f"{source}.{item.name}"
                if inner in modules or source in modules:
                    yield node.lineno, inner if inner in modules else source


def room_of(name: str, modules: dict[str, Path]) -> str | None:
    """The room of a module; None for what stands directly in the package."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (len(parts) > 2 or modules[name].name == "__init__.py") else None


def direction_errors(name: str, imports: list[tuple[int, str]], modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Imports that point from a room to one that builds on it."""
    mine = room_of(name, modules)
    if mine is None:
        return
    if mine not in ROOMS:
        yield 1, f"{mine}: give this room its place in ROOMS of tests/lint/lint_python.py"
        return
    for line, target in imports:
        theirs = room_of(target, modules)
        if theirs in ROOMS and ROOMS.index(theirs) > ROOMS.index(mine):
            yield line, f"{mine}/ may not import {target}, which stands on it"


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Some modules that import each other in a circle, if there are any."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        for target in sorted(edges[name]):
            if (found := visit(target, [*path, name])) is not None:
                return found
        done.add(name)
        return None

    return next((found for name in edges if (found := visit(name, [])) is not None), None)


def size_errors(path: Path) -> Iterator[tuple[int, str]]:
    """Classes and functions that are too long, their docstrings included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            most = MOST_LINES_OF_A_CLASS if isinstance(node, ast.ClassDef) else MOST_LINES_OF_A_FUNCTION
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > most:
                yield node.lineno, f"{node.name}: expected at most {most} lines, got {lines}"


def violations(package: Path) -> list[str]:
    """One line for each."""
    modules = modules_of(package)
    imports = {name: list(dict.fromkeys(imports_of(name, path, modules))) for name, path in modules.items()}
    found = []
    for name, path in modules.items():
        wrong = [*direction_errors(name, imports[name], modules), *size_errors(path)]
        found += [f"{path.relative_to(package.parent)}:{line}: {message}" for line, message in wrong]
    edges = {name: {target for _, target in targets if target != name} for name, targets in imports.items()}
    if (round_trip := circle(edges)) is not None:
        found.append(f"{PACKAGE}: expected no circle of imports, got {' -> '.join([*round_trip, round_trip[0]])}")
    files = sorted(path.name for path in package.iterdir() if path.is_file() and path.suffix in (".py", ".pyi", ".typed"))
    if len(files) > MOST_FILES:
        found.append(f"{PACKAGE}: expected at most {MOST_FILES} files directly in it, got {', '.join(files)}")
    return [*found, f"lint_python: {len(modules)} modules, {len(found)} violations"]


def main() -> int:
    """Prints what it found and returns the exit status."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    lines = violations(root / "python" / PACKAGE)
    print("\n".join(lines))
    return 1 if len(lines) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())

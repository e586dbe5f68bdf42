"""The mutations of the Python tree, with the operators of Cosmic Ray.

Its own runner is not used: it changes the project itself in place, runs one and the same command for every mutant, and draws
no sample. Here a mutant is a text, and the place is drawn before the operator, since some operators fit a place eleven times.
"""

from __future__ import annotations

import ast
import random
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from runner import Mutant
from trees import ROOT

OPERATORS = {name: get_operator(name)() for name in operator_names() if not get_operator(name).arguments()}


class WithoutAnnotations(ast.NodeTransformer):
    """Takes away what the package never evaluates."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(value=None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def meaning(source: str) -> str:
    return ast.dump(WithoutAnnotations().visit(ast.parse(source)))


def mutant_at(path: str, source: str, position: tuple[int, int], operator: str, occurrence: int) -> Mutant:
    def text() -> str | None:
        changed = mutate_code(source, OPERATORS[operator], occurrence)
        try:
            return None if changed is None or meaning(changed) == meaning(source) else changed
        except SyntaxError:
            return None

    line, column = position
    return Mutant(f"{path}:{line}:{column + 1}: {operator.partition('/')[2]} {occurrence}", path, text)


def places(path: Path) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Where a source can be changed, with the operators that fit there and their counts of occurrences."""
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(path.read_text(encoding="utf-8"))))
    for name, operator in OPERATORS.items():
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(positions):
            found.setdefault(start, []).append((name, occurrence))
    return found


def draw(seed: int) -> list[Mutant]:
    """One mutant for every place of the package, in the order of the draw."""
    rng = random.Random(seed)
    found = []
    for path in sorted((ROOT / "python/lora_c").rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        found += [mutant_at(name, source, start, *rng.choice(fitting)) for start, fitting in sorted(places(path).items())]
    rng.shuffle(found)
    return found

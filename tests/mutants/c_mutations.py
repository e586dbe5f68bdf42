"""The mutations of a C source: one wrong character or word each, outside comments, strings and what is not compiled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

TOKEN = re.compile(
    r"(?P<space>\s+|\\\n)|(?P<comment>/\*.*?\*/|//[^\n]*)"
    r"|(?P<skipped>#[ \t]*(?!define\b)\w+(?:\\\n|[^\n])*|#[ \t]*define[ \t]+\w+(?:\([^)]*\))?)"
    r"|(?P<string>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')|(?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign><<=|>>=|\.\.\.|->|\+\+|--|&&|\|\||<<|>>|[-+*/%&|^<>=!]=|.)",
    re.DOTALL,
)
SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&", "+": "-", "-": "+", "*": "/",
    "/": "*", "%": "/", "&": "|", "|": "&", "<<": ">>", ">>": "<<", "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "++": "--",
    "--": "++", "&=": "|=", "|=": "&=", "true": "false", "false": "true", "break": "continue", "continue": "break",
}  # fmt: skip
NOT_BINARY = {"+", "-", "*", "&"}  # after these kinds of token they are signs, pointers or addresses
KEYWORDS = {"return", "case", "sizeof", "else", "do", "if", "while", "for", "switch", "goto"}
NO_CALL = KEYWORDS | {"LORA_CHECK", "_Static_assert", "defined"}
EITHER_WAY = re.compile(r"lora_(min|max)_\w+|fm(in|ax)f?|_mm\w*_(add|mul|min|max|and|or|xor)_\w+")  # the order means nothing
INTEGER = re.compile(r"(0[xX][0-9a-fA-F]+|\d+)([uUlL]*)")
FLOAT = re.compile(r"(\d+\.\d*|\.\d+|\d+)([fF]?)")


class Token(NamedTuple):
    """A piece of the source that is compiled."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class Mutation:
    """What stands in source[start:end] and what is written there instead."""

    start: int
    end: int
    new: str
    kind: str


def tokens_of(source: str) -> list[Token]:
    found = []
    for match in TOKEN.finditer(source):
        kind = match.lastgroup or ""
        if kind not in ("space", "comment", "skipped"):
            found.append(Token(kind, match.group(), match.start()))
    return found


def closing(tokens: list[Token], i: int) -> int | None:
    """The index of the parenthesis that closes the one at i."""
    depth = 0
    for j in range(i, len(tokens)):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(tokens[j].text, 0)
        if depth == 0:
            return j
    return None


def binary(tokens: list[Token], i: int) -> bool:
    """Whether the sign at i stands between two operands."""
    before = tokens[i - 1] if i else None
    return before is not None and (
        before.kind == "number" or before.text in (")", "]") or (before.kind == "name" and before.text not in KEYWORDS)
    )


def other_number(text: str) -> Iterator[str]:
    """The number one more and one less."""
    if match := INTEGER.fullmatch(text):
        value = int(match[1], 0) if not (match[1].startswith("0") and match[1].isdigit()) else int(match[1], 8)
        yield from (f"{value + step}{match[2]}" for step in (1, -1) if value + step >= 0)
    elif match := FLOAT.fullmatch(text):
        yield from (f"{float(match[1]) + step}{match[2]}" for step in (1, -1))


def token_mutations(tokens: list[Token], i: int) -> Iterator[Mutation]:
    token = tokens[i]
    if token.kind == "number":
        yield from (Mutation(token.start, token.end, new, "number") for new in other_number(token.text))
    elif token.text in SWAPS and token.kind != "string" and (token.text not in NOT_BINARY or binary(tokens, i)):
        yield Mutation(token.start, token.end, SWAPS[token.text], "operator" if token.kind == "sign" else "word")


def swapped_arguments(source: str, tokens: list[Token], i: int) -> Iterator[Mutation]:
    """Two neighbouring arguments of the call whose name is at i, each in the other's place."""
    if tokens[i].kind != "name" or tokens[i].text in NO_CALL or i + 1 == len(tokens) or tokens[i + 1].text != "(":
        return
    if i and (
        tokens[i - 1].kind == "name"
        and tokens[i - 1].text not in KEYWORDS
        or tokens[i - 1].text == "*"
        and not binary(tokens, i - 1)
    ):
        return  # a declaration
    end = closing(tokens, i + 1)
    if end is None or EITHER_WAY.fullmatch(tokens[i].text):
        return
    bounds, depth = [tokens[i + 1].end], 0
    for token in tokens[i + 1 : end]:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.text, 0)
        if token.text == "," and depth == 1:
            bounds += [token.start, token.end]
    bounds.append(tokens[end].start)
    pieces = [(bounds[k], bounds[k + 1]) for k in range(0, len(bounds), 2)]
    for (a, b), (c, d) in zip(pieces, pieces[1:], strict=False):
        first, second = source[a:b].strip(), source[c:d].strip()
        if first != second:
            yield Mutation(a, d, f"{second}, {first}", "arguments")


def statement_end(tokens: list[Token], i: int) -> int | None:
    """The index of the semicolon that ends the statement at i; None where none begins there that can be dropped."""
    if i == 0 or tokens[i - 1].text not in (";", "{", "}", ")", "else", ":") or tokens[i].kind != "name":
        return None
    plain = tokens[i].text in ("break", "continue") or (tokens[i].text == "return" and tokens[i + 1].text == ";")
    if not plain and (
        tokens[i].text in KEYWORDS
        or tokens[i + 1].text not in ("(", "=", ".", "->", "[", "+=", "-=", "*=", "|=", "&=", "++", "--")
    ):
        return None
    depth = 0
    for j in range(i, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[j].text, 0)
        if depth < 0 or tokens[j].text in ("{", "}"):  # in the head of a loop, or no plain statement
            return None
        if tokens[j].text == ";":
            return j
    return None


def structure_mutations(source: str, tokens: list[Token], i: int) -> Iterator[Mutation]:
    """A dropped statement, and a branch that is never taken."""
    if (end := statement_end(tokens, i)) is not None:
        yield Mutation(tokens[i].start, tokens[end].end, ";", "statement")
    if tokens[i].text == "if" and (end := closing(tokens, i + 1)) is not None:
        condition = source[tokens[i + 1].end : tokens[end].start]
        yield Mutation(tokens[i + 1].end, tokens[end].start, f"0 && ({condition})", "branch")


def mutations_of(source: str) -> list[Mutation]:
    """Every mutation of a source, in the order of its text."""
    tokens = tokens_of(source)
    found: list[Mutation] = []
    for i in range(len(tokens)):
        found += token_mutations(tokens, i)
        found += swapped_arguments(source, tokens, i)
        found += structure_mutations(source, tokens, i)
    return found


def mutated(source: str, mutation: Mutation) -> str:
    return source[: mutation.start] + mutation.new + source[mutation.end :]

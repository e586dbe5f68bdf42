"""The loops of disassembled kernels, and how many instructions they, or kernels without, take for a unit of work."""

from __future__ import annotations

import re
from collections.abc import Iterator

from expected_code import Budget

LINE = re.compile(r"^(?:(?P<label>\.L_x_\d+):|\s*/\*[0-9a-f]{4,}\*/\s+(?P<code>.*?)\s*;)", re.MULTILINE)
PREDICATE = re.compile(r"^@!?U?P\w+\s+")
BRANCH = re.compile(r"BRA\b.*`\((\.L_x_\d+)\)")

Code = list[str]


class Kernel:
    """A kernel's opcodes in order, and the runs of them that a branch back makes a loop."""

    def __init__(self, text: str) -> None:
        self.opcodes: Code = []
        labels: dict[str, int] = {}
        self.loops: list[Code] = []
        for line in LINE.finditer(text):
            if line["label"]:
                labels[line["label"]] = len(self.opcodes)
                continue
            code = PREDICATE.sub("", line["code"])
            self.opcodes.append(code.split()[0])
            branch = BRANCH.match(code)
            if branch and branch[1] in labels:
                self.loops.append(self.opcodes[labels[branch[1]] :])

    def cost(self, budget: Budget) -> float | None:
        """Return the instructions of a unit of work in the tightest loop with the markers, else of all; None without them."""
        return min(self._costs(budget, self.loops), default=None) or min(
            self._costs(budget, [self._until_exit()]), default=None
        )

    def _until_exit(self) -> Code:
        """What can run: behind the last EXIT there is padding."""
        return self.opcodes[: max((i + 1 for i, opcode in enumerate(self.opcodes) if opcode == "EXIT"), default=0)]

    def _costs(self, budget: Budget, bodies: list[Code]) -> Iterator[float]:
        for body in bodies:
            if markers := sum(bool(re.match(budget.marker, opcode)) for opcode in body):
                yield len(body) / (markers * budget.per)

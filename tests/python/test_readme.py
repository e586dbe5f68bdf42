"""The notebook example of the README runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_notebook_example_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    code = next(b for b in blocks if "NF4Tensor.quantize" in b)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    scope: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), scope)
    printed = capsys.readouterr().out
    assert "NF4Tensor" in printed
    assert float(printed.split()[-1]) < 100.0

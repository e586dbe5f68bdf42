"""What the README shows runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import lora_c

README = Path(__file__).parents[2] / "README.md"
PYTHON = README.parent / "docs" / "PYTHON.md"


def test_notebook_example_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    code = next(b for b in blocks if "NF4Tensor.quantize" in b)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    scope: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), scope)
    printed = capsys.readouterr().out
    assert "NF4Tensor" in printed
    assert float(printed.split()[-1]) < 100.0


def test_device_example_learns_on_a_device_as_on_the_cpu(device: str, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    here, there = (next(b for b in blocks if words in b) for words in ("NF4Tensor.quantize", 'device = "cuda"'))
    scope: dict[str, object] = {}
    exec(compile(here, str(README), "exec"), scope)
    expected = float(capsys.readouterr().out.split()[-1])  # the loss behind the last step
    exec(compile(there.replace('"cuda"', repr(device)), str(README), "exec"), scope)
    view, loss = re.match(r"(DeviceArray\(.*?'\)) (\S+) \(4, 256\)\n", capsys.readouterr().out).groups()
    assert view == f"DeviceArray(shape=(256, 8), dtype=float32, device='{device}')"
    assert expected < float(loss) < 2 * expected  # before it


def test_the_buffers_of_the_python_page_are_as_it_says():
    blocks = re.findall(r"```python\n(.*?)```", PYTHON.read_text(encoding="utf-8"), re.S)
    code = next(b for b in blocks if "memoryview" in b)
    exec(compile(code, str(PYTHON), "exec"), {})


def test_the_commands_of_the_first_fifteen_minutes_run(tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 2
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "lora-c"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m lora_c "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(lora_c.__file__).parents[1]),
    }
    done = subprocess.run(
        ["sh", "-euc", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "A silver key." in done.stdout and "A red lantern." in done.stdout
    assert (tmp_path / "out" / "loss.png").exists() and (tmp_path / "merged" / "model.safetensors").exists()
    assert (tmp_path / "adapter.gguf").exists() and (tmp_path / "model.gguf").exists()

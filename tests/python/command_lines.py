"""A folder with a model, data and a finished run, and a working call of every command in it."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import lora_c
from lora_c.demo.run import BASE_MODEL
from lora_c.demo.world import task

# Short names, so that no path is longer than a narrow terminal; {n} is another name for each call.
CALLS = {
    "train": "train --model model --data chat.jsonl --output-dir t{n} --max-steps 12 --batch-size 2 --val-fraction 0.2 "
             "--eval-steps 5 --lr 1e-3",
    "sweep": "sweep --model model --data chat.jsonl --output-dir s{n} --val-fraction 0.2 --max-steps 3 "
             "--trials 3 --lr-max 3e-3",
    "compare": "compare --model model --data chat.jsonl --output-dir k{n} --val-fraction 0.2 --max-steps 3 --rows lora-r1 "
               "--seeds 1 --no-loading",
    "generate": "generate --model model --adapter run --max-new-tokens 4 Hello",
    "chat": "chat --model model --max-new-tokens 4",
    "classify": "classify --model c Hello",
    "serve": "serve --model model --port 0 --max-seq-length 64",
    "eval": "eval --model model --data chat.jsonl --adapter run",
    "data": "data --model model --data chat.jsonl",
    "plan": "plan --model model --data chat.jsonl --r 4 --seconds 0.1",
    "merge": "merge --model model --adapter run --output-dir m{n}",
    "export": "export run e{n} --to mlx --model model",
    "inspect": "inspect model",
    "quantize": "quantize --model model --output-dir q{n}",
    "bench": "bench --model model --steps 1 --batch 1 --length 16 --profile",
    "devices": "devices",
    "replay": "replay bad/bad-step-1",
    "plot": "plot run --out p{n}.png",
    "demo": "demo --short --out d{n}",
    "completion": "completion zsh",
}  # fmt: skip
# Those that print one JSON object with --json.
REPORTING = ("train", "sweep", "compare", "eval", "data", "plan", "merge", "export", "inspect", "quantize", "devices", "bench",
             "replay", "plot", "demo")  # fmt: skip

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_count = 0


def words_of(name: str) -> list[str]:
    """The arguments of a working call."""
    global _count
    _count += 1
    return CALLS[name].format(n=_count).split()


def environment(**variables: str) -> dict[str, str]:
    """Of a person in a UTF-8 terminal, whatever this process has; a variable that is empty is not set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "NO_COLOR", "COLUMNS"))}
    paths = [str(Path(lora_c.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = kept | {"LANG": "C.UTF-8", "TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg"}
    return {name: value for name, value in (found | variables).items() if value}


def make_workplace(folder: Path) -> Path:
    """Fill the folder: ``model``, a classifier in ``c``, ``chat.jsonl``, and a run of two steps in ``run``."""
    import json

    (folder / "model").symlink_to(BASE_MODEL)
    lora_c.load_model(folder / "model", task_type="SEQ_CLS", num_labels=3, progress=False).save(folder / "c")
    lines = [json.dumps(example) + "\n" for example in task(1, 12, 1)[0]]
    (folder / "chat.jsonl").write_text("".join(lines), encoding="utf-8")
    done = called(folder, ["train", "--model", "model", "--data", "chat.jsonl", "--output-dir", "run", "--max-steps", "2"])
    assert done.returncode == 0, done.stderr
    left_out = ["--output-dir", "bad", "--max-steps", "1", "--skip-grad-norm", "1e-9"]
    done = called(folder, ["train", "--model", "model", "--data", "chat.jsonl", *left_out])
    assert done.returncode == 0, done.stderr
    return folder


def call(folder: Path, words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with its output in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "lora_c", *words], cwd=folder, env=environment(**variables), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, encoding="utf-8", timeout=300,
    )  # fmt: skip


def served(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """A server with its output in pipes, ended by SIGTERM when it listens."""
    program = subprocess.Popen(
        [sys.executable, "-m", "lora_c", *words], cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    assert program.stdout is not None
    lines = []
    for line in program.stdout:
        lines.append(line)
        if line.startswith("listening"):
            program.terminate()
    _, err = program.communicate(timeout=60)
    return subprocess.CompletedProcess(words, program.returncode, "".join(lines), err)


def interrupted(folder: Path, words: list[str], at: str) -> subprocess.CompletedProcess[str]:
    """A command ended by Ctrl-C when a line of its standard error begins so; what it says from there on."""
    program = subprocess.Popen(
        [sys.executable, "-m", "lora_c", *words], cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    assert program.stderr is not None
    with program.stderr:
        while not program.stderr.readline().startswith(at):
            assert program.poll() is None
        program.send_signal(signal.SIGINT)
        said = program.stderr.read()
    return subprocess.CompletedProcess(words, program.wait(), "", said)


def kills(few: int) -> int:
    """At how many moments a test kills a command; `make check-kills` asks for 30."""
    return int(os.environ.get("LORA_C_KILLS") or few)


def least_hits(count: int) -> float:
    """How many of so many must have been at work: one where there are few, whose run a fast machine ends before the last."""
    return 1 if count < 10 else 0.6 * count


def killed_and_called(folder: Path, words: list[str], moments: list[float]) -> subprocess.CompletedProcess[str]:
    """The command in processes of its own that are killed after so many seconds each, then once more to its end.

    `hits` of what is returned says how many of them had not ended by themselves.
    """
    hits = 0
    for seconds in moments:
        program = subprocess.Popen(
            [sys.executable, "-m", "lora_c", *words], cwd=folder, env=environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            program.wait(seconds)
        except subprocess.TimeoutExpired:
            hits += 1
            program.kill()
            program.wait()
    done = called(folder, words)
    done.hits = hits  # type: ignore[attr-defined]
    return done


def called(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """The same in this process, which saves the time to start: files in the place of the streams, no signals."""
    from lora_c.cli.commands import run

    before, code = (os.getcwd(), sys.argv, sys.stdin), 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        os.chdir(folder)
        sys.argv, sys.stdin = ["lora-c", *words], io.TextIOWrapper(io.BytesIO())
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.argv, sys.stdin = before[1:]
            os.chdir(before[0])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def on_terminal(folder: Path, words: list[str], columns: int, **variables: str) -> tuple[str, int]:
    """Run a command in a terminal; return the bytes as text, and the exit code."""
    import pexpect

    child = pexpect.spawn(
        sys.executable, ["-m", "lora_c", *words], cwd=str(folder), env=environment(**variables), dimensions=(40, columns),
        timeout=300, encoding="utf-8",
    )  # fmt: skip
    child.sendeof()  # what reads standard input has nothing to read
    seen = ""
    if words[0] == "serve":  # which ends by Ctrl-C alone
        child.expect("ends it|Error")
        seen = child.before + child.after
        child.sendintr()
    seen += child.read()
    child.close()
    return seen, int(child.exitstatus if child.exitstatus is not None else 128 + child.signalstatus)


def lines_of(seen: str) -> list[str]:
    """What was to be read on the screen at some time: each state of each line, without escape codes."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", _ESCAPE.sub("", seen)) if line.strip()]

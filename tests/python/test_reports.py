"""What programs read of a command: one JSON object on standard output, and the exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from command_lines import REPORTING, called, environment, make_workplace, words_of

from lora_c.cli import cli
from lora_c.cli.commands import COMMANDS
from lora_c.cli.errors import exit_code
from lora_c.cli.json_output import print_json
from lora_c.errors import ConfigError, DataError, SaveError


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("w"))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path, value


def own_keys(value: Any) -> Iterator[str]:
    """The keys that a command names; names of layers, operations and files are none."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from (
                () if key in ("profile", "kinds", "ranks", "targets", "train", "facts", "gradient_norms") else own_keys(item)
            )
    elif isinstance(value, list):
        for item in value:
            yield from own_keys(item)


KEYS = {
    "train": {"steps", "train_loss", "eval_loss", "tokens_per_second", "elapsed_seconds", "peak_memory_bytes", "output_dir"},
    "compare": {"advice", "base", "rows", "loading", "output_dir", "written"},
    "sweep": {"learning_rate", "rungs", "trials", "output_dir", "picture"},
    "eval": {"loss", "perplexity", "tokens", "sequences"}, "merge": {"output", "dtype", "bytes", "report"},
    "export": {"source", "output", "format", "bytes"}, "inspect": {"kind", "facts", "tensors", "problems", "usable"},
    "quantize": {"model", "output", "bytes", "block_size"}, "plot": {"picture", "runs"},
    "replay": {"step", "problem", "loss", "same_loss", "same_gradients", "first_nonfinite", "gradient_norms"},
    "bench": {"tokens_per_second", "step_seconds", "peak_memory_bytes", "profile"},
    "plan": {"parameters", "memory", "flops_per_token", "speed", "fits", "change", "papers", "advice", "checkpoint_bytes"},
    "demo": {"exact_match_before", "exact_match_after"}, "data": {"steps_per_epoch"}, "devices": {"devices"},
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in REPORTING if name in COMMANDS])
def test_json_is_one_object_and_nothing_else_is_on_standard_output(workplace: Path, name: str) -> None:
    done = called(workplace, [*words_of(name), "--json"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stdout.endswith("}\n")
    values = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert isinstance(values, dict) and KEYS[name] <= values.keys()
    assert not [key for key in own_keys(values) if not re.fullmatch(r"[a-z][a-z0-9_]*", key)]
    numbers_as_texts = [(path, v) for path, v in leaves(values) if isinstance(v, str) and re.fullmatch(r"[\d.,]+( \w+)?", v)]
    assert not numbers_as_texts


def test_facts_of_an_inspection_are_numbers_lists_and_truth_values(workplace: Path, stories: Path) -> None:
    model = json.loads(called(workplace, ["inspect", "model", "--json"]).stdout)["facts"]
    assert model["num_hidden_layers"] == 5 and model["chat_template"] is True and model["tokenizer"] == {"tokens": 512}
    data = json.loads(called(workplace, ["inspect", "chat.jsonl", "--json"]).stdout)["facts"]
    assert data["records"] == 12 and data["all_records"] is True and data["kinds"] == {"messages": 12}
    run = json.loads(called(workplace, ["inspect", "run", "--json"]).stdout)["facts"]
    assert run["ranks"] == {"8": 35} and run["parameters"] == 97_280 and "q_proj" in run["targets"]
    assert json.loads(called(workplace, ["inspect", str(stories), "--json"]).stdout)["facts"]["chat_template"] is False


def test_numbers_that_json_lacks_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    print_json({"a": float("inf"), "b": [float("nan"), np.float32(0.5)], "c": {"d": np.int64(3), "e": Path("x")}, "f": True})
    assert capsys.readouterr().out == '{"a": null, "b": [null, 0.5], "c": {"d": 3, "e": "x"}, "f": true}\n'


# --- exit codes ---------------------------------------------------------------------------------------------------------


def test_the_same_kind_of_error_has_the_same_code() -> None:
    assert [exit_code(error) for error in (ConfigError("x"), DataError("x"), SaveError("x"), OSError(), MemoryError())] == [
        2, 1, 1, 1, 1,
    ]  # fmt: skip


WRONG = [name for name in COMMANDS if name != "completion"]


def told(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr and done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_usage_is_2_in_every_command(name: str) -> None:
    for args in (["--no-such-flag"], ["--config"], ["--config", "missing.yaml"]):
        done = CliRunner().invoke(cli, [name, *args])
        code = done.exit_code if not isinstance(done.exception, ConfigError) else exit_code(done.exception)
        assert code == 2, (args, done.output, done.exception)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("bench", "demo", "chat", "devices")])
def test_missing_inputs_are_2_in_every_command(workplace: Path, name: str) -> None:
    done = called(workplace, [name])
    assert done.returncode == 2, done.stderr
    told(done)


@pytest.mark.parametrize("words", [
    "train --model nowhere --data chat.jsonl --output-dir x", "train --model model --data nowhere --output-dir x",
    "generate --model nowhere x", "chat --model nowhere", "eval --model nowhere --data chat.jsonl",
    "eval --model model --data nowhere", "merge --model nowhere --adapter run --output-dir x",
    "merge --model model --adapter nowhere --output-dir x", "export nowhere x --to gguf", "inspect nowhere",
    "quantize --model nowhere --output-dir x", "bench --model nowhere", "plot nowhere", "replay nowhere",
    "generate --model model --adapter model x", "train --model run --data chat.jsonl --output-dir x",
    "quantize --model model --output-dir /proc/nowhere", "plot run --out /proc/nowhere/x.png",
])  # fmt: skip
def test_what_is_not_there_is_1_in_every_command(workplace: Path, words: str) -> None:
    done = called(workplace, words.split())
    assert done.returncode == 1, (done.returncode, done.stderr)
    line = told(done).strip().splitlines()[-1]
    assert line.startswith("lora-c: ") and not (workplace / "x").exists()


@pytest.mark.parametrize("words", [
    "train --model model --data chat.jsonl --lr -1", "train --model model --data chat.jsonl --output-dir model",
    "generate --model model --temperature -1 x", "eval --model model --data chat.jsonl --batch-tokens 0",
    "bench --model model --length 100000", "merge --model model --adapter run --output-dir x --weights 1,2",
    "export run x --to gguf --model model --dtype q8_0", "plot run --out metrics.jsonl",
])  # fmt: skip
def test_a_value_that_a_flag_cannot_have_is_2_in_every_command(workplace: Path, words: str) -> None:
    done = called(workplace, words.split())
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "--" in told(done) or "OUTPUT" in done.stderr


@pytest.mark.parametrize("name", ["generate", "inspect", "completion", "plot"])
def test_nobody_reads_the_output(workplace: Path, name: str) -> None:
    """A closed pipe ends it as it ends other programs, a full disk is an error, and neither prints a traceback."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed, open("/dev/full", "wb") as full:
        for output, code in ((closed, 141), (full, 1)):
            done = subprocess.run(
                [sys.executable, "-m", "lora_c", *words_of(name)], cwd=workplace, env=environment(), stdout=output,
                stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=100,
            )  # fmt: skip
            assert done.returncode == code, done.stderr
            assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
            assert code == 141 or "No space left" in done.stderr

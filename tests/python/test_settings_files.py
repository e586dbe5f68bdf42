"""Files of settings to begin with: what --print-config writes, and the examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lora_c.cli import cli
from lora_c.cli.train import command as train
from lora_c.configs import ADAPTER_KINDS, LoraConfig, TrainConfig
from lora_c.demo.run import BASE_MODEL
from lora_c.gguf import write_model
from lora_c.model.opening import load_model

# Of the demo, which stands for a larger model here.
_OF_THE_DEMO = "the tokenizer has no token for|are trained as they stand"
pytestmark = pytest.mark.filterwarnings(f"ignore:.*({_OF_THE_DEMO}):lora_c.LoraCWarning")

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def printed(*args: object) -> str:
    done = invoke("train", *args, "--print-config")
    assert done.exit_code == 0 and done.stderr == ""
    return done.stdout


def read(path: Path) -> dict[str, Any]:
    """The options of lora-c train that a file gives."""
    context = train.make_context("train", ["--config", str(path)])
    given = [name for name in context.params if context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT_MAP]
    return {name: context.params[name] for name in given}


def configs(values: dict[str, Any]) -> tuple[TrainConfig, LoraConfig]:
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
    training = {name: value for name, value in values.items() if name in TrainConfig.model_fields}
    adapter = {name: value for name, value in values.items() if name in LoraConfig.model_fields and name != "seed"}
    return TrainConfig(**training), LoraConfig(**adapter)


def test_every_key_is_printed_once_with_its_meaning() -> None:
    text = printed()
    keys = re.findall(r"^#?(\w+):", text, re.M)
    params = {str(param.name).replace("as_json", "json") for param in train.params if param.expose_value}
    assert sorted(keys) == sorted(params | {"overwrite"})
    for name, info in [*TrainConfig.model_fields.items(), *LoraConfig.model_fields.items()]:
        if info.description and name not in ("seed",):
            before = text[: re.search(rf"^#?{name}:", text, re.M).start()]  # type: ignore[union-attr]
            meaning = " ".join(line.lstrip("# ") for line in before.rsplit("\n\n", 1)[1].splitlines())
            assert info.description in meaning, name
    others = [f"adapter of peft_type {kind.lower()}" for kind in ADAPTER_KINDS if kind != "LORA"]
    assert re.findall(r"# ---- (.*) ----", text) == ["main flags", "options", "training", "adapter", *others]
    assert max(map(len, text.splitlines())) <= 104


def test_what_is_printed_is_read_and_says_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(printed())
    assert set(read(path)) == {"model", "data", "output_dir", "num_train_epochs", "learning_rate"}
    assert configs(read(path)) == (TrainConfig(), LoraConfig())
    path.write_text(re.sub(r"^#(\w+:)", r"\1", printed(), flags=re.M).replace("save_total_limit: null", ""))
    values = read(path)
    assert len(values) > 40 and configs(values) == (TrainConfig(), LoraConfig())


def test_what_was_given_is_printed_as_a_setting_and_printing_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    flags = ("--model", "m", "--data", "a.jsonl", "--data", "b", "--lr", "1e-3", "--target-modules", "q_proj,v_proj")
    path.write_text(printed(*flags, "--use-dora", "--rank-pattern", "q_proj=4", "--bias", "lora_only", "--no-double-quant"))
    values = read(path)
    assert values["data"] == ["a.jsonl", "b"] and values["learning_rate"] == 1e-3 and values["double_quant"] is False
    assert values["target_modules"] == ["q_proj", "v_proj"] and values["rank_pattern"] == {"q_proj": 4}
    assert values["use_dora"] is True and values["bias"] == "lora_only"
    assert printed("--config", path) == path.read_text()


def test_a_printed_file_starts_a_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("w3 w4 w5 w6 w7 w8 " * 20)
    flags = ("--model", tiny_model_dir, "--data", tmp_path / "d.txt", "--output-dir", tmp_path / "o", "--max-steps", 1)
    (tmp_path / "c.yaml").write_text(printed(*flags, "--method", "lora"))
    done = invoke("train", "--config", tmp_path / "c.yaml")
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "o" / "adapter_model.safetensors").is_file()


def test_there_is_an_example_of_each_kind() -> None:
    assert [path.name for path in EXAMPLES] == ["chat.yaml", "completion.yaml", "full.yaml", "gguf.yaml"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_trains(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the data of the examples lies beside them
    model = BASE_MODEL
    if example.stem == "gguf":
        model = tmp_path / "base.gguf"
        write_model(model, load_model(BASE_MODEL, progress=False), "Q8_0")
    out = tmp_path / "out"
    flags = ("--model", model, "--output-dir", out, "--max-steps", 2, "--limit", 20)
    done = invoke("train", "--config", example, *flags)
    assert done.exit_code == 0, done.exception
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == 2 and any("eval_loss" in record for record in records)
    kind = "config.json" if example.stem == "full" else "adapter_config.json"
    assert (out / kind).is_file()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_commands_in_an_example_have_flags_that_exist(example: Path) -> None:
    text = example.read_text()
    assert "path/to/model" in text and f"--config examples/{example.name}" in text
    commands = re.findall(r"^#   lora-c (\w+) +(.*?)(?:   .*)?$", text, re.M)
    assert len(commands) >= 2
    context = click.Context(cli)
    for name, args in commands:
        command = cli.get_command(context, name)
        assert command is not None
        words = [word.strip('"') for word in args.split()]
        command.make_context(name, words)

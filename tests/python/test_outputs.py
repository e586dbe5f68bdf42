"""No command lets an output take the place of an input, whatever the two are called."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from lora_c.cli import cli
from lora_c.cli.commands import COMMANDS
from lora_c.cli.paths import InputPath, OutputPath, ResumePath
from lora_c.gguf import write_model
from lora_c.model.opening import load_model

IDS = np.arange(3, 20, dtype=np.int32)
# Options that take a text which is no path.
TEXTS = {
    "generate": {"prompt", "device"}, "chat": {"system", "device"}, "serve": {"host", "served_model_name", "device"},
    "classify": {"text", "text_pair", "device"}, "eval": {"split", "device"}, "merge": {"combination"},
    "plot": {"title"}, "bench": {"device"},
    **dict.fromkeys(("train", "sweep", "compare", "plan"), {
        "device", "layers_pattern", "init_lora_weights", "target_modules", "exclude_modules", "modules_to_save",
        "metric_for_best_model", "init_weights", "prompt_tuning_init_text", "tokenizer_name_or_path",
        "paged_dir",  # of a file that has no name
        "launch",  # of train
    }),
}  # fmt: skip
# How each command is called, {name}: the path of an input of that name.
CALLS = {
    "train": "train --model {model} --data {data} --eval-data {eval_data} --chat-template {chat_template} --adapter {adapter} "
    "--output-dir OUT --max-steps 1 --method lora",
    "sweep": "sweep --model {model} --data {data} --eval-data {eval_data} --chat-template {chat_template} --output-dir OUT "
    "--max-steps 3 --trials 2 --method lora",
    "compare": "compare --model {model} --data {data} --eval-data {eval_data} --chat-template {chat_template} "
    "--output-dir OUT --base-text {base_text} "
    "--task perplexity --task-data {task_data} --row-file {row_file} --max-steps 1 --rows head --seeds 1 --no-loading",
    "eval": "eval --model {model} --data {data} --chat-template {chat_template} --adapter {adapter} "
    "--baseline {baseline} --output OUT",
    "data": "data --model {model} --data {data} --eval-data {eval_data} --chat-template {chat_template} --plot OUT",
    "merge": "merge --model {model} --adapter {adapters} --output-dir OUT --data {data}",
    "export": "export {source} OUT --to peft --model {model}",
    "quantize": "quantize --model {model} --output-dir OUT",
    "bench": "bench --numerics --model {model} --data {data} --eval-data {eval_data} --chat-template {chat_template} "
    "--output-dir OUT --steps 1 --seeds 1 --batch 1 --length 16",
}


TEXT_FILES = ("data", "eval_data", "chat_template", "base_text", "task_data", "row_file")


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def paths_of(name: str, kind: type) -> list[str]:
    return [str(param.name) for param in command_of(name).params if isinstance(param.type, kind)]


def test_every_option_that_takes_a_text_is_placed() -> None:
    for name in COMMANDS:
        known = TEXTS.get(name, set())
        for param in command_of(name).params:
            if isinstance(param.type, click.Path):
                assert param.name == "config"
            elif isinstance(param.type, click.types.StringParamType):
                assert param.name in known, f"{name} {param.name}: an InputPath, an OutputPath, or a text?"
    with_output = {name for name in COMMANDS if paths_of(name, OutputPath)}
    assert with_output == {*CALLS, "demo", "plan"}  # demo has no inputs but the model that ships; plan writes nothing
    for name, call in CALLS.items():
        assert all(f"{{{param}}}" in call for param in paths_of(name, InputPath)), name


@pytest.fixture
def place(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Inputs of every kind, under the names of the options."""
    model = load_model(tiny_model_dir)
    bare = shutil.copytree(tiny_model_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    write_model(tmp_path / "model.gguf", load_model(bare), "F32")
    shutil.rmtree(bare)
    model.add_adapter(r=2, target_modules="all-linear")
    for name in ("adapter", "adapters", "baseline", "source"):
        model.save_adapter(tmp_path / name)
        model.save_adapter(tmp_path / f"{name}.gguf", format="gguf")
    for name in TEXT_FILES:
        (tmp_path / f"{name}.txt").write_text("w3 w4 w5 w6 w7 w8 " * 20)
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / f"{name}.txt", tmp_path / name / "a.txt")
    (tmp_path / "row_file.txt").write_text("mine:\n  r: 1\n")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)), prog_name="lora-c")


def call(place: Path, name: str, output: object, **inputs: object) -> Result:
    names = paths_of(name, InputPath)
    paths = {n: str(inputs.get(n, place / (f"{n}.txt" if n in TEXT_FILES else n))) for n in names}
    return run(*[str(output) if word == "OUT" else word.format(**paths) for word in CALLS[name].split()])


def cases() -> Iterator[Any]:
    for name in CALLS:
        for param in paths_of(name, InputPath):
            for form in ("folder", "file", "symlink", "hard link", "relative", "gguf"):
                yield pytest.param(name, param, form, id=f"{name}-{param}-{form}")


@pytest.mark.parametrize(("name", "param", "form"), list(cases()))
def test_an_output_that_is_an_input_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, param: str, form: str
) -> None:
    folder, output = place / param, place / param
    given: Path | str = folder
    if form in ("file", "hard link"):
        adapters = dict.fromkeys(("adapter", "adapters", "baseline", "source"), "adapter_config.json")
        inside = ({"model": "config.json"} | adapters).get(param)
        given = folder if inside else place / f"{param}.txt"
        output = folder / inside if inside else Path(given)
        if form == "hard link":
            os.link(output, place / "link")
            output = place / "link"
    elif form == "symlink":
        output = place / "link"
        output.symlink_to(folder)
    elif form == "relative":
        monkeypatch.chdir(place)
        output = Path(f"./data/../{param}/")
    elif form == "gguf":
        given = output = place / (f"{param}.txt" if param in TEXT_FILES else f"{param}.gguf")
    before = contents(place)
    for more in ([], ["--to", "gguf"] if name in ("merge", "export") else []):
        names = paths_of(name, InputPath)
        paths = {n: place / (f"{n}.txt" if n in TEXT_FILES else n) for n in names} | {param: given}
        words = [str(output) if word == "OUT" else word.format(**paths) for word in CALLS[name].split()]
        result = run(*words, *more)
        assert result.exit_code != 0 and "expected another place than" in str(result.exception), (words, result.exception)
        assert "--overwrite" in str(result.exception) and contents(place) == before


@pytest.mark.filterwarnings("ignore:sweep")  # of two rates one is always the last on its side
@pytest.mark.parametrize("name", list(CALLS))
def test_another_place_is_fine(place: Path, name: str) -> None:
    before = contents(place)
    for output in (place / "out", place / "model" / "out", place / "adapters" / "merged"):
        result = call(place, name, output)
        assert result.exit_code == 0, result.exception
    after = contents(place)
    assert {key: after[key] for key in before} == before


def test_a_file_of_an_input_that_the_output_folder_would_replace_is_refused(place: Path) -> None:
    out = place / "out"
    out.mkdir()
    for name in ("metrics.jsonl", "config.yaml", "vocab.json"):
        shutil.copy(place / "data.txt", out / name)
    shutil.copytree(place / "model", out / "base_model")
    before = contents(place)
    for inputs in ({"data": out / "metrics.jsonl"}, {"eval_data": out / "vocab.json"}, {"model": out / "base_model"}):
        result = call(place, "train", out, **inputs)
        assert "expected another place" in str(result.exception) and contents(place) == before, inputs
    os.link(place / "data.txt", out / "loss.png")
    assert "loss" in str(call(place, "train", out).exception) or "data.txt" in str(call(place, "train", out).exception)
    (out / "loss.png").unlink()
    result = run("merge", "--model", place / "model", "--adapter", place / "adapters", "--output", place / "m.gguf", "--data",
                 place / "m.merge_report.txt")  # fmt: skip
    assert result.exit_code != 0
    shutil.copy(place / "data.txt", place / "m.merge_report.txt")
    result = run("merge", "--model", place / "model", "--adapter", place / "adapters", "--output", place / "m.gguf", "--data",
                 place / "m.merge_report.txt")  # fmt: skip
    assert "expected another place" in str(result.exception)


def test_files_beside_the_output_are_fine(place: Path) -> None:
    assert call(place, "train", place, data=place / "data.txt").exit_code == 0
    assert (place / "adapter_config.json").exists() and (place / "data.txt").exists()


def test_the_base_that_an_adapter_names_is_an_input(place: Path) -> None:
    (place / "out").mkdir()
    os.link(place / "model/tokenizer.json", place / "out/tokenizer.json")
    before = contents(place)
    result = run("export", place / "source", place / "out", "--to", "hf")
    assert "expected another place than the adapter's base" in str(result.exception) and contents(place) == before


def test_a_part_of_a_split_gguf_file_is_an_input(place: Path) -> None:
    for i in (1, 2):
        shutil.copy(place / "model.gguf", place / f"m-0000{i}-of-00002.gguf")
    before = contents(place)
    result = run("export", place / "m-00001-of-00002.gguf", place / "m-00002-of-00002.gguf", "--to", "gguf")
    assert "expected another place" in str(result.exception) and contents(place) == before


def test_the_file_of_settings_is_not_replaced_unless_a_run_wrote_it(place: Path) -> None:
    out = place / "out"
    out.mkdir()
    text = f"model: {place}/model\ndata: {place}/data.txt\noutput_dir: {out}\nmax_steps: 1\nmethod: lora # mine\n"
    (out / "config.yaml").write_text(text)
    result = run("train", "--config", out / "config.yaml")
    assert "expected another place than config" in str(result.exception)
    assert (out / "config.yaml").read_text() == text and os.listdir(out) == ["config.yaml"]
    (out / "config.yaml").rename(place / "mine.yaml")
    assert run("train", "--config", place / "mine.yaml").exit_code == 0
    assert run("train", "--config", out / "config.yaml", "--resume", "auto").exit_code == 0
    assert (place / "mine.yaml").read_text() == text


def test_the_checkpoint_that_is_resumed_is_no_output_folder(place: Path) -> None:
    flags = ["--save-steps", 1, "--max-steps", 2]
    paths = {name: place / name for name in ("model", "data", "eval_data", "adapter")}
    paths |= {"chat_template": place / "chat_template.txt"}
    words = CALLS["train"].format(**paths).replace("OUT", f"{place}/out").split()
    assert run(*words, *flags).exit_code == 0
    for output, refused in ((place / "out/checkpoint-1", True), (place / "out", False)):
        result = run("train", "--model", place / "model", "--data", place / "data", "--method", "lora", "--max-steps", 2,
                     "--output-dir", output, "--resume", place / "out/checkpoint-1")  # fmt: skip
        assert ("expected another place than resume" in str(result.exception)) is refused, result.exception
    assert paths_of("train", ResumePath) == ["resume"]


def test_overwrite_replaces_the_input_by_a_whole_output(place: Path) -> None:
    expected = load_model(place / "model", quantize="nf4").decoder.logits(IDS)
    assert run("quantize", "--model", place / "model", "--output-dir", place / "model", "--overwrite").exit_code == 0
    assert np.array_equal(load_model(place / "model").decoder.logits(IDS), expected)
    expected = load_model(place / "model.gguf").decoder.logits(IDS)
    assert run("export", place / "model.gguf", place / "model.gguf", "--to", "gguf", "--dtype", "float32", "--overwrite"
               ).exit_code == 0  # fmt: skip
    assert np.array_equal(load_model(place / "model.gguf").decoder.logits(IDS), expected)
    before = contents(place / "source")
    result = run("export", place / "source", place / "source", "--to", "mlx", "--model", place / "model", "--overwrite")
    assert "expected a folder without an adapter of PEFT" in str(result.exception) and contents(place / "source") == before


def test_saving_over_the_source_in_python_loses_nothing(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    (folder / "notes.txt").write_text("mine")
    model = load_model(folder)
    expected = model.decoder.logits(IDS)
    model.save(folder)
    assert np.array_equal(load_model(folder).decoder.logits(IDS), expected) and (folder / "notes.txt").read_text() == "mine"


def test_settings_of_the_user_in_the_output_folder_stay(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("w3 w4 w5 w6 w7 w8 " * 20)
    config = tmp_path / "out/config.yaml"
    config.parent.mkdir()
    config.write_text("mine: 1\n")
    flags = ["--model", tiny_model_dir, "--data", tmp_path / "d.txt", "--method", "lora", "--max-steps", 1]
    refused = run("train", *flags, "--output-dir", config.parent)
    assert "output-dir: expected a folder without a config.yaml of another kind" in str(refused.exception)
    assert config.read_text() == "mine: 1\n" and os.listdir(config.parent) == ["config.yaml"]
    assert run("train", *flags, "--output-dir", config.parent, "--overwrite").exit_code == 0
    assert config.read_text().startswith("# lora-c train")
    again = run("train", *flags, "--output-dir", config.parent)
    assert "which holds a run (checkpoint-1); give --output-dir" in str(again.exception)
